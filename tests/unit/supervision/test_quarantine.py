"""A tenant that crashes again and again is left alone, longer each time, and then altogether for a while."""

from hypothesis import given
from hypothesis import strategies as st

from actors.supervision import quarantine
from actors.supervision.quarantine import CRASHES_MAX, QUARANTINE_S, WINDOW_S, Ward


def test_each_crash_makes_the_next_activation_wait_longer_and_the_fifth_ends_it() -> None:
    ward, now_s, waits = Ward(), 100.0, []
    for _ in range(CRASHES_MAX - 1):
        ward = quarantine.crashed(ward, "acme", "KeyError: 'x'", now_s)
        waits.append(ward.wait_s("acme", now_s))
        now_s += waits[-1]
    assert waits == sorted(waits)
    assert waits[0] > 0
    assert ward.reason("acme", now_s) == ""
    ward = quarantine.crashed(ward, "acme", "KeyError: 'x'", now_s)
    assert "crashed 5 times within 60 s, at last: KeyError: 'x'" in ward.reason("acme", now_s)
    assert ward.wait_s("acme", now_s) == QUARANTINE_S
    assert ward.wait_s("globex", now_s) == 0
    assert ward.reason("acme", now_s + QUARANTINE_S) == ""


def test_an_operator_lets_it_out() -> None:
    ward = quarantine.quarantined(Ward(), "acme", "as the log says", 1_000.0)
    assert ward.reason("acme", 0.0) == "as the log says"
    assert quarantine.released(ward, "acme").wait_s("acme", 0.0) == 0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 40)), max_size=40))
def test_only_so_many_crashes_within_the_window_bar_a_tenant(crashes: list[tuple[str, float]]) -> None:
    ward, now_s, seen = Ward(), 0.0, list[tuple[str, float]]()
    for tenant, pause_s in crashes:
        now_s += pause_s
        ward = quarantine.crashed(ward, tenant, "why", now_s)
        seen.append((tenant, now_s))
        recent = [at for name, at in seen if name == tenant and now_s - at < WINDOW_S]
        assert bool(ward.reason(tenant, now_s)) == (len(recent) >= CRASHES_MAX)


def test_who_has_crashed_of_late_is_watched_and_after_a_minute_no_more() -> None:
    ward = quarantine.crashed(Ward(), "acme", "its process died", 100.0)
    assert ward.is_suspect("acme", 100.0 + WINDOW_S - 1)
    assert not ward.is_suspect("acme", 100.0 + WINDOW_S)
    assert not ward.is_suspect("globex", 100.0)
    assert not quarantine.released(ward, "acme").is_suspect("acme", 100.0)
