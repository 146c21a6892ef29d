"""What a key may do, and that no key makes more of itself."""

import msgspec
import pytest
from hypothesis import given as given_values
from hypothesis import strategies as st

from actors.tenant import Tenant, answer, keys
from actors.tenant.keys import scopes_of
from events.errors import (
    ForbiddenError,
    InvalidCommandError,
    KeyRefusedError,
    ModelNotAllowedError,
    NotFoundError,
    Refusal,
    TenantSuspendedError,
)
from events.tenant import (
    ROLE_SCOPES,
    AddUser,
    Authenticate,
    BudgetSet,
    ChangeUser,
    IssueKey,
    KeyIssued,
    KeyRevoked,
    KeyRotated,
    Limit,
    LimitsSet,
    ListKeys,
    RemoveUser,
    ReserveCall,
    RevokeKey,
    Role,
    RotateKey,
    Scope,
    SuspendTenant,
    TenantSuspended,
    UserAdded,
    UserRemoved,
)
from tests.kit.factories import HOUR_US, NOW_US, created, key_issued
from tests.kit.scenario import given

ALL: tuple[Scope, ...] = ("inference", "runs", "read", "admin")
OLD, NEW = b"o" * 32, b"n" * 32


def admin_key(**changes: object) -> KeyIssued:
    return msgspec.structs.replace(KeyIssued("boss", "boss", b"b" * 32, NOW_US, scopes=ALL), **changes)


def issue(**changes: object) -> IssueKey:
    return msgspec.structs.replace(IssueKey("new", "new", NEW, scopes=("read",)), **changes)


def reserve(model: str = "small", key_id: str = "k1") -> ReserveCall:
    return ReserveCall("c1", key_id, model, 10, HOUR_US)


def test_a_key_ends_when_it_expires() -> None:
    scenario = given(created())
    scenario.when(issue(expires_us=NOW_US + 10, scopes=("inference", "read")))
    assert scenario.when(Authenticate("new", NEW), NOW_US + 9) == []
    for command in (Authenticate("new", NEW), reserve(key_id="new")):
        with pytest.raises(KeyRefusedError):
            scenario.when(command, NOW_US + 10)


def test_a_rotated_key_has_two_secrets_until_the_overlap_is_over() -> None:
    scenario = given(created(), key_issued("k1", OLD))
    assert scenario.when(RotateKey("k1", NEW, HOUR_US)) == [KeyRotated("k1", NEW, NOW_US + HOUR_US, NOW_US)]
    assert scenario.when(Authenticate("k1", OLD), NOW_US + HOUR_US - 1) == []
    assert scenario.when(Authenticate("k1", NEW)) == []
    with pytest.raises(KeyRefusedError):
        scenario.when(Authenticate("k1", OLD), NOW_US + HOUR_US)
    assert scenario.when(Authenticate("k1", NEW), NOW_US + HOUR_US) == []


def test_who_shows_the_old_secret_is_told_when_it_ends() -> None:
    """So that no gateway remembers it for longer."""
    state = given(created(), key_issued("k1", OLD), KeyRotated("k1", NEW, NOW_US + 5, NOW_US)).state
    ends = [answer(state, "acme", Authenticate("k1", digest), NOW_US)["valid_until_us"] for digest in (OLD, NEW)]
    assert ends == [NOW_US + 5, 0]


def test_a_second_rotation_ends_the_first_secret_at_once() -> None:
    scenario = given(created(), key_issued("k1", OLD), KeyRotated("k1", NEW, NOW_US + HOUR_US, NOW_US))
    scenario.when(RotateKey("k1", b"3" * 32, HOUR_US))
    with pytest.raises(KeyRefusedError):
        scenario.when(Authenticate("k1", OLD))
    assert scenario.when(Authenticate("k1", NEW)) == []


def test_rotating_to_the_same_secret_changes_nothing_and_a_revoked_key_is_not_rotated() -> None:
    scenario = given(created(), key_issued("k1", OLD))
    assert scenario.when(RotateKey("k1", OLD, HOUR_US)) == []
    scenario.when(RevokeKey("k1"))
    with pytest.raises(InvalidCommandError, match="revoked"):
        scenario.when(RotateKey("k1", NEW, HOUR_US))
    with pytest.raises(NotFoundError):
        scenario.when(RotateKey("k2", NEW, HOUR_US))


def test_a_key_without_the_scope_starts_no_call() -> None:
    with pytest.raises(ForbiddenError):
        given(created(), key_issued(), admin_key(key_id="k1", scopes=("read", "admin"))).when(reserve())


def test_a_key_for_some_models_calls_no_other() -> None:
    scenario = given(created(), admin_key(key_id="k1", models=("small",)))
    with pytest.raises(ModelNotAllowedError, match="only small"):
        scenario.when(reserve("large"))
    assert len(scenario.when(reserve("small"))) == 1


@pytest.mark.parametrize(
    "bad", [issue(scopes=()), issue(models=()), issue(expires_us=NOW_US), issue(name=""), issue(models=("m",) * 101)]
)
def test_a_key_that_makes_no_sense_is_refused(bad: IssueKey) -> None:
    with pytest.raises(InvalidCommandError):
        given(created()).when(bad)


def test_a_users_role_bounds_the_key_when_it_is_issued_and_ever_after() -> None:
    scenario = given(created(), UserAdded("ada", "Ada", "user", NOW_US))
    with pytest.raises(ForbiddenError, match="admin"):
        scenario.when(issue(user_id="ada", scopes=("read", "admin")))
    scenario.when(issue(user_id="ada", scopes=("inference", "read")))
    scenario.when(ChangeUser("ada", role="viewer"))
    assert answer(scenario.state, "acme", Authenticate("new", NEW), NOW_US)["scopes"] == ["read"]
    with pytest.raises(ForbiddenError):
        scenario.when(reserve(key_id="new"))


def test_removing_a_user_revokes_the_users_keys() -> None:
    scenario = given(
        created(), UserAdded("ada", "Ada", "user", NOW_US), key_issued("k1"), admin_key(key_id="k2", user_id="ada")
    )
    assert scenario.when(RemoveUser("ada")) == [KeyRevoked("k2"), UserRemoved("ada")]
    with pytest.raises(KeyRefusedError):
        scenario.when(reserve(key_id="k2"))


def test_a_suspended_tenant_refuses_its_keys_and_tells_only_who_holds_one() -> None:
    scenario = given(created(), key_issued("k1", OLD))
    assert scenario.when(SuspendTenant("invoice overdue")) == [TenantSuspended("invoice overdue", NOW_US)]
    for command in (Authenticate("k1", OLD), reserve()):
        with pytest.raises(TenantSuspendedError):
            scenario.when(command)
    with pytest.raises(KeyRefusedError):
        scenario.when(Authenticate("k1", NEW))


@pytest.mark.parametrize(
    ("issuer", "wanted"),
    [
        (admin_key(scopes=("admin", "read")), issue(scopes=("inference",), by_key="boss")),
        (admin_key(models=("small",)), issue(by_key="boss")),
        (admin_key(models=("small",)), issue(models=("small", "large"), by_key="boss")),
        (admin_key(expires_us=NOW_US + 10), issue(by_key="boss")),
        (admin_key(expires_us=NOW_US + 10), issue(expires_us=NOW_US + 11, by_key="boss")),
        (admin_key(user_id="ada"), issue(by_key="boss")),
        (admin_key(scopes=("read",)), issue(by_key="boss")),
        (admin_key(user_id="eve"), issue(by_key="boss", user_id="eve")),
    ],
)
def test_a_key_issues_none_that_can_more_than_itself(issuer: KeyIssued, wanted: IssueKey) -> None:
    users = (UserAdded("ada", "Ada", "admin", NOW_US), UserAdded("eve", "Eve", "user", NOW_US))
    with pytest.raises(ForbiddenError):
        given(created(), *users, issuer).when(wanted)


@pytest.mark.parametrize(
    "bound", [BudgetSet(5, "day", None, "key:boss"), LimitsSet((Limit("requests", 1),), "key:boss", NOW_US)]
)
def test_a_key_with_bounds_of_its_own_issues_none_that_would_escape_them(bound: BudgetSet | LimitsSet) -> None:
    with pytest.raises(ForbiddenError, match="escape"):
        given(created(), admin_key(), bound).when(issue(by_key="boss"))


def test_rotating_a_stronger_key_would_be_taking_it_over() -> None:
    scenario = given(created(), admin_key(scopes=("admin",)), key_issued("k1", OLD))
    with pytest.raises(ForbiddenError):
        scenario.when(RotateKey("k1", NEW, 0, by_key="boss"))
    assert len(scenario.when(RotateKey("boss", NEW, 0, by_key="boss"))) == 1


@pytest.mark.parametrize(
    "command", [RevokeKey("k1", by_key="k1"), ListKeys(by_key="k1"), AddUser("x", "x", "admin", by_key="k1")]
)
def test_a_key_without_the_scope_admin_manages_nothing(command: RevokeKey | ListKeys | AddUser) -> None:
    with pytest.raises(ForbiddenError, match="admin"):
        given(created(), key_issued()).when(command)


def test_an_expired_admin_key_manages_nothing() -> None:
    with pytest.raises(KeyRefusedError):
        given(created(), admin_key(expires_us=NOW_US)).when(issue(by_key="boss"))


some_scopes = st.sets(st.sampled_from(ALL), min_size=1).map(tuple)
some_models = st.none() | st.sets(st.sampled_from("abc"), min_size=1).map(tuple)
some_end = st.just(0) | st.integers(NOW_US + 1, NOW_US + 5)
some_user = st.sampled_from(["", "admin", "user", "viewer"])


@given_values(st.lists(st.tuples(some_scopes, some_models, some_end, some_user, st.integers(-1, 5)), max_size=8))
def test_rights_only_shrink_along_any_chain_of_keys(
    wishes: list[tuple[tuple[Scope, ...], tuple[str, ...] | None, int, str, int]],
) -> None:
    """Whatever is asked for by whichever key: what a key got is within what its issuer has and its user's role covers."""
    roles: tuple[Role, ...] = ("admin", "user", "viewer")
    scenario = given(created(), *(UserAdded(role, role, role, NOW_US) for role in roles))
    issued: list[str] = []
    for number, (scopes, models, expires_us, user_id, by) in enumerate(wishes):
        issuer = issued[by] if 0 <= by < len(issued) else ""
        key_id = f"key{number}"
        command = IssueKey(key_id, "x", bytes([number]) * 32, scopes, models, expires_us, user_id, by_key=issuer)
        try:
            scenario.when(command)
        except Refusal:
            continue
        issued.append(key_id)
        _check_within(scenario.state, key_id, issuer)


def _check_within(state: Tenant, key_id: str, issuer_id: str) -> None:
    key = state.keys[key_id]
    if key.user_id:
        assert set(key.scopes) <= ROLE_SCOPES[state.users[key.user_id].role]
    if not issuer_id:
        return
    issuer = state.keys[issuer_id]
    assert scopes_of(state, key) <= scopes_of(state, issuer)
    assert issuer.models is None or (key.models is not None and set(key.models) <= set(issuer.models))
    assert not issuer.expires_us or 0 < key.expires_us <= issuer.expires_us


@pytest.mark.parametrize(
    "bound",
    [
        BudgetSet(1_000, "total", None, "user:ann"),
        LimitsSet((Limit("requests", 1),), "user:ann", NOW_US),
    ],
    ids=["budget", "limits"],
)
def test_a_user_with_bounds_issues_and_rotates_no_other_users_keys(bound: BudgetSet | LimitsSet) -> None:
    """With a key of somebody that she has added herself she would escape them."""
    people = (UserAdded("ann", "Ann", "admin", NOW_US), UserAdded("bob", "Bob", "admin", NOW_US))
    bobs = msgspec.structs.replace(admin_key(), key_id="bobs", digest=OLD, user_id="bob")
    scenario = given(created(), *people, admin_key(user_id="ann"), bobs, bound)
    with pytest.raises(ForbiddenError, match="escape"):
        scenario.when(issue(user_id="bob", by_key="boss"))
    with pytest.raises(ForbiddenError, match="escape"):
        scenario.when(RotateKey("bobs", NEW, 0, by_key="boss"))
    assert len(scenario.when(issue(user_id="ann", by_key="boss"))) == 1


def test_of_keys_that_have_ended_only_some_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever issues and revokes for ever would fill the memory that the tenant shares with others."""
    monkeypatch.setattr(keys, "ENDED_KEPT", 10)
    scenario = given(created(), key_issued("good", OLD))
    for number in range(30):
        scenario.when(msgspec.structs.replace(issue(), key_id=f"k{number}"))
        scenario.when(RevokeKey(f"k{number}"))
    assert list(scenario.state.keys) == ["good", *(f"k{number}" for number in range(20, 30))]
    assert scenario.when(Authenticate("good", OLD)) == []
    with pytest.raises(KeyRefusedError):
        scenario.when(Authenticate("k0", NEW))
    for number in range(30):  # nor of those that nobody has to revoke
        brief = msgspec.structs.replace(issue(), key_id=f"e{number}", expires_us=NOW_US + number + 1)
        scenario.when(brief, NOW_US + number)
    assert list(scenario.state.keys) == ["good", *(f"e{number}" for number in range(20, 30))]
