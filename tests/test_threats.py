"""The threats that the platform is held to, each with the tests that prove it, or with the reason why there is none. The numbers
are those of the project's reliability page: SEC are ways across tenants or roles, DOS ways to use up what others need.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

PROVEN: dict[str, tuple[str, ...]] = {
    # another tenant's ids
    "SEC-1": (
        "integration/test_two_tenants.py::test_whatever_is_another_tenants_is_answered_as_if_it_were_not_there",
        "e2e/test_up.py::test_tenants_are_apart_at_both_doors",
    ),
    # roles and scopes
    "SEC-2": (
        "integration/test_access.py::test_each_role_reaches_its_own_routes_and_no_others",
        "integration/test_access.py::test_no_tenants_key_opens_an_admin_route",
        "integration/test_access.py::test_a_tenants_admin_issues_no_key_stronger_than_its_own",
    ),
    # fields that are the server's
    "SEC-3": ("integration/test_access.py::test_fields_that_are_not_the_clients_are_refused_and_have_no_effect",),
    # keys that begin alike
    "SEC-4": ("integration/test_access.py::test_keys_that_share_a_prefix_are_never_taken_for_each_other",),
    # paths and hosts written strangely
    "SEC-5": ("integration/test_hostile.py::test_no_way_of_writing_a_path_opens_an_operators_route",),
    # the Authorization header as a weapon
    "SEC-6": ("integration/test_hostile.py::test_no_authorization_header_does_harm",),
    # answers that go to somebody else
    "SEC-7": (
        "integration/test_hostile.py::test_a_storm_of_clients_that_leave_mixes_up_nobodys_answers",
        "integration/test_valkey_link.py",
    ),
    # tenants named like wildcards
    "SEC-8": ("integration/test_hostile.py::test_no_tenant_is_named_like_a_wildcard",),
    # listening to others' replies
    "SEC-9": ("integration/test_hostile.py::test_who_has_no_password_hears_nothing_of_broker_or_store",),
    # caches that answer somebody else
    "SEC-10": (
        "integration/test_once.py::test_the_cache_is_nobody_elses_and_no_way_round_a_keys_models_or_limits",
        "integration/test_once.py::test_the_cache_is_opt_in_and_serves_whole_and_streamed_for_nothing",
    ),
    # streams that outlive their key, or are another's
    "SEC-11": (
        "integration/test_hostile.py::test_a_stream_ends_with_the_key_that_opened_it",
        "integration/test_two_tenants.py::test_whatever_is_another_tenants_is_answered_as_if_it_were_not_there",
    ),
    # what a browser sends by itself
    "SEC-12": (
        "integration/test_hostile.py::test_keys_come_in_the_authorization_header_only_and_there_are_no_websockets",
    ),
    # tools that are sent inside
    "SEC-13": (
        "unit/test_egress.py::test_a_url_that_leads_inside_is_refused_before_anything_is_resolved",
        "unit/test_egress.py::test_a_name_that_resolves_to_inside_is_refused",
        "unit/test_egress.py::test_an_answer_that_changes_after_the_check_changes_nothing",
        "unit/test_egress.py::test_a_redirect_to_inside_is_not_followed",
        "integration/test_http_tool.py::test_what_is_not_the_callers_to_choose_is_refused",
    ),
    # a key of one kind for a door of another
    "SEC-14": (
        "integration/test_hostile.py::test_a_key_of_one_kind_opens_nothing_of_another",
        "integration/test_metrics.py::test_only_the_admin_key_and_the_metrics_key_read_them",
        "unit/test_keys.py::test_a_digest_depends_on_every_part_of_the_key_and_on_the_pepper",
    ),
    # nobody there to ask
    "SEC-15": ("unit/test_auth.py::test_whoever_can_not_be_checked_is_an_error_never_a_default",),
    # secrets and texts in logs, metrics, traces, dead letters
    "SEC-16": (
        "integration/test_canaries.py::test_no_canary_is_found_where_an_operator_looks",
        "unit/test_logs.py::test_secrets_and_keys_are_blacked_out_wherever_they_stand",
        "unit/test_keys.py::test_a_key_leads_to_its_tenant_and_shows_nothing_in_logs",
    ),
    # what takes longer tells something
    "SEC-17": ("unit/test_auth.py::test_unknown_wrong_and_revoked_take_the_same_work",),
    # revoked keys
    "SEC-18": (
        "unit/test_auth.py::test_what_was_checked_is_believed_for_a_moment_while_revocations_can_be_heard",
        "unit/test_auth.py::test_a_revocation_that_is_heard_ends_what_was_remembered_at_once",
        "integration/test_chat.py::test_a_revoked_key_stops_working_at_once",
        "integration/test_access.py::test_a_suspended_tenant_is_refused_with_403_while_calls_under_way_are_finished",
    ),
    # bodies without end
    "DOS-1": (
        "integration/test_hostile.py::test_a_body_without_end_is_cut_at_the_limit",
        "integration/test_chat.py::test_a_body_over_the_limit_is_refused",
        "integration/test_listener.py::test_a_body_that_stops_coming_is_a_client_that_left",
        "integration/test_admin.py::test_a_stranger_is_refused_before_the_body_is_read",
    ),
    # heads that are too large
    "DOS-2": (
        "integration/test_hostile.py::test_a_head_that_is_too_large_is_not_even_held",
        "e2e/test_up.py::test_nothing_listens_beyond_loopback",
    ),
    # heads that never end
    "DOS-3": (
        "integration/test_listener.py::test_a_head_that_never_ends_is_given_up",
        "integration/test_listener.py::test_so_is_one_on_a_kept_connection_and_one_that_is_too_large",
        "integration/test_hostile.py::test_connections_are_bounded",
    ),
    # streams that nobody reads
    "DOS-4": ("integration/test_hostile.py::test_who_does_not_read_its_stream_holds_up_the_model_not_our_memory",),
    # JSON made to hurt
    "DOS-6": ("integration/test_hostile.py::test_json_made_to_hurt_is_a_bad_request",),
    # one request that is two
    "DOS-7": ("integration/test_hostile.py::test_one_request_that_could_be_two_is_refused_or_closes_the_connection",),
    # headers that proxies act upon
    "DOS-8": ("integration/test_hostile.py::test_hop_by_hop_names_and_forwarded_addresses_change_nothing",),
    "DOS-9": ("integration/test_hostile.py::test_hop_by_hop_names_and_forwarded_addresses_change_nothing",),
    # Serve's own headers
    "DOS-10": ("e2e/test_up.py::test_serves_own_headers_have_no_effect",),
    # a flood of idempotency keys
    "DOS-11": (
        "integration/test_hostile.py::test_an_idempotency_key_is_kept_for_two_days_and_no_longer",
        "integration/test_kept_answers.py::test_a_flood_of_keys_is_the_tenants_own_limit_until_old_ones_are_over",
    ),
    # a flood of tenants
    "DOS-12": (
        "integration/test_metrics.py::test_however_many_labels_come_they_take_bounded_room",
        "integration/test_metrics.py::test_no_label_holds_an_id_or_anything_a_client_has_made_up",
        "integration/test_shards.py",
    ),
    # reading everything, again and again
    "DOS-13": ("integration/test_hostile.py::test_a_log_is_read_a_bounded_page_at_a_time_and_by_operators_only",),
}
# no subject yet: whoever builds it brings the tests along
WITHOUT_SUBJECT: dict[str, str] = {
    "DOS-5": "no WebSockets: the listener has them off, and SEC-12's test asks for one in vain",
}
EVERY = [f"SEC-{number}" for number in range(1, 19)] + [f"DOS-{number}" for number in range(1, 14)]


def test_each_threat_is_proven_or_has_a_reason() -> None:
    assert sorted(PROVEN.keys() | WITHOUT_SUBJECT.keys()) == sorted(EVERY)
    assert not PROVEN.keys() & WITHOUT_SUBJECT.keys()


@pytest.mark.parametrize("threat", PROVEN)
def test_the_tests_that_prove_it_are_there(threat: str) -> None:
    for name in PROVEN[threat]:
        path, _, function = name.partition("::")
        tree = ast.parse((TESTS / path).read_text())
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert not function or function in found, name
