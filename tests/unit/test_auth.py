"""Who is let in while parts of the platform are away, and for how long what was known is believed. Fails closed."""

import hmac
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from actors.tenant.keys import authenticate
from actors.tenant.state import Key, Tenant
from events.envelope import Ok
from events.errors import (
    CommandRefusedError,
    KeyRefusedError,
    NotServedError,
    PlatformError,
    StoreUnavailableError,
    TransientError,
)
from events.tenant import Authenticate
from serve import auth
from serve.auth import Authenticator, Revocation
from serve.keys import make_key

PEPPER = "p" * 48
KEY = make_key(PEPPER, "acme", "c").text
HEADER = f"Bearer {KEY}"
IDENTITY = {
    "key_id": KEY.split("-")[2],
    "scopes": ["inference", "read"],
    "models": None,
    "user_id": "",
    "valid_until_us": 0,
}


class Parts:
    """Store, tenant and bus in one, each as well as it is told to be."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_connected = True
        self.store: PlatformError | None = None
        self.tenant: PlatformError | None = None
        self.push: Callable[[bytes, str], None] = lambda _data, _reply: None

    async def exists(self, _tenant: str) -> bool:
        if self.store is not None:
            raise self.store
        return True

    async def ask(self, _tenant: str, _command: object, **_options: object) -> Ok:
        self.asked += 1
        if self.tenant is not None:
            raise self.tenant
        return Ok(IDENTITY, 1)

    async def subscribe(self, _subject: str, handler: Callable[[bytes, str], None]) -> None:
        self.push = handler


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
async def authenticator(parts: Parts) -> Authenticator:
    found: Any = parts
    made = Authenticator(found, found, PEPPER, "sk-admin-0123456789abcdef")
    await made.follow_revocations(found)
    return made


async def test_whoever_can_not_be_checked_is_an_error_never_a_default(
    authenticator: Authenticator, parts: Parts
) -> None:
    """SEC-15, the store and the tenant away, on a key that nobody has checked yet."""
    parts.store = StoreUnavailableError("away")
    with pytest.raises(TransientError):
        await authenticator.authenticate(HEADER, "read")
    parts.store, parts.tenant = None, NotServedError("acme", "away")
    with pytest.raises(TransientError):
        await authenticator.authenticate(HEADER, "read")
    parts.tenant = CommandRefusedError("rate_limited", "busy", 1.0)
    with pytest.raises(CommandRefusedError):  # an overloaded tenant has said nothing about the key
        await authenticator.authenticate(HEADER, "read")
    parts.tenant = None
    assert (await authenticator.authenticate(HEADER, "read")).tenant == "acme"


async def test_what_was_checked_is_believed_for_a_moment_while_revocations_can_be_heard(
    authenticator: Authenticator, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEC-18: a replica that is cut off from the revocations believes nothing that it remembers."""
    now_s = 100.0
    monkeypatch.setattr("serve.auth.time", SimpleNamespace(monotonic=lambda: now_s))
    for _ in range(3):
        await authenticator.authenticate(HEADER, "read")
    assert parts.asked == 1
    parts.is_connected = False
    parts.tenant = NotServedError("acme", "the bus is away")
    with pytest.raises(TransientError):
        await authenticator.authenticate(HEADER, "read")
    parts.is_connected, parts.tenant = True, None
    await authenticator.authenticate(HEADER, "read")
    assert parts.asked == 2
    now_s += auth.CACHE_TTL_S  # the push got lost: this is the longest it can matter
    parts.tenant = CommandRefusedError(KeyRefusedError.code, "no")
    with pytest.raises(KeyRefusedError):
        await authenticator.authenticate(HEADER, "read")


@pytest.mark.parametrize("key_id", ["", IDENTITY["key_id"]])
async def test_a_revocation_that_is_heard_ends_what_was_remembered_at_once(
    authenticator: Authenticator, parts: Parts, key_id: str
) -> None:
    """SEC-18: of one key, or of all keys of a tenant that is suspended."""
    await authenticator.authenticate(HEADER, "read")
    parts.push(msgspec.msgpack.encode(Revocation("other", key_id)), "")
    parts.push(msgspec.msgpack.encode(Revocation("acme", "another-key-")), "")
    await authenticator.authenticate(HEADER, "read")
    assert parts.asked == 1
    parts.push(msgspec.msgpack.encode(Revocation("acme", key_id)), "")
    parts.tenant = CommandRefusedError(KeyRefusedError.code, "no")
    with pytest.raises(KeyRefusedError):
        await authenticator.authenticate(HEADER, "read")


def test_unknown_wrong_and_revoked_take_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """SEC-17, without a stopwatch: as many constant-time comparisons of as many bytes each, whatever is wrong with the key."""
    compared: list[tuple[int, int]] = []

    really_compare = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return really_compare(left, right)

    monkeypatch.setattr("actors.tenant.keys.hmac.compare_digest", compare)
    good = bytes(range(32))
    plain = Key("k", good, 0, scopes=("read",))
    state = Tenant(keys={"known": plain, "revoked": msgspec.structs.replace(plain, revoked=True)})
    work = []
    for key_id, digest in (("unknown", good), ("known", bytes(32)), ("revoked", good)):
        compared.clear()
        with pytest.raises(KeyRefusedError) as refusal:
            authenticate(state, Authenticate(key_id, digest), 1)
        work.append((tuple(compared), str(refusal.value)))
    assert len(set(work)) == 1
    assert work[0][0] == ((32, 32), (32, 32))
