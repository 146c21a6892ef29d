"""Who is calling. Tenants' keys are checked by their tenant and remembered for a moment; a revocation is pushed."""

import hmac
import time
from collections import OrderedDict

import msgspec

from events.ask import Asker
from events.bus import KEYS_REVOKED, Bus
from events.errors import CommandRefusedError, KeyRefusedError, NotFoundError
from events.patience import patiently
from events.store import EventStore
from events.tenant import Authenticate
from serve.keys import digest_of, parse_key

CACHE_TTL_S = 5.0  # the longest a revoked key can still read if the push got lost; it can't spend at all
CACHE_MAX = 10_000


class Principal(msgspec.Struct, frozen=True):
    tenant: str
    key_id: str


class Revocation(msgspec.Struct, frozen=True, array_like=True):
    tenant: str
    key_id: str


def bearer(header: str | None) -> str:
    """The token of an Authorization header. Raises KeyRefusedError where there is none."""
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise KeyRefusedError
    return token.strip()


class KnownTenants:
    """Which tenants there are, asked of the store once each: a tenant, once created, stays."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._known: set[str] = set()

    async def exists(self, tenant: str) -> bool:
        """So that nobody activates a tenant that was made up. Raises StoreUnavailableError."""
        if tenant in self._known:
            return True
        if await patiently(lambda: self._store.head(tenant)) is None:
            return False
        if len(self._known) >= CACHE_MAX:
            self._known.clear()
        self._known.add(tenant)
        return True


class Authenticator:
    """Fails closed: whoever can't be checked gets an error, never a default."""

    def __init__(self, asker: Asker, tenants: KnownTenants, pepper: str, admin_key: str) -> None:
        self._asker, self._tenants, self._pepper = asker, tenants, pepper
        self._admin_digest = hmac.digest(pepper.encode(), admin_key.encode(), "sha256")
        # keyed by the hash of the whole key: a cache keyed by a part of it would mix up keys that share the part
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._revocations = 0

    async def follow_revocations(self, bus: Bus) -> None:
        await bus.subscribe(KEYS_REVOKED, self._on_revoked)

    def _on_revoked(self, data: bytes, _reply_to: str) -> None:
        revoked = msgspec.msgpack.decode(data, type=Revocation)
        self._revocations += 1
        gone = Principal(revoked.tenant, revoked.key_id)
        for digest in [digest for digest, (_, principal) in self._known.items() if principal == gone]:
            del self._known[digest]

    def is_admin(self, token: str) -> bool:
        given = hmac.digest(self._pepper.encode(), token.encode(errors="replace"), "sha256")
        return hmac.compare_digest(given, self._admin_digest)

    async def authenticate(self, header: str | None) -> Principal:
        """
        Raises:
            KeyRefusedError: Not a valid key of any tenant.
            TransientError: It could not be checked.
        """
        key = parse_key(bearer(header))
        digest = digest_of(self._pepper, key)
        known = self._known.get(digest)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        if not await self._tenants.exists(key.tenant):
            raise KeyRefusedError
        revocations = self._revocations
        try:
            await self._asker.ask(key.tenant, Authenticate(key.key_id, digest), actor="gateway")
        except CommandRefusedError as refusal:
            if refusal.code not in (KeyRefusedError.code, NotFoundError.code):
                raise  # an overloaded tenant has said nothing about the key
            raise KeyRefusedError from refusal
        principal = Principal(key.tenant, key.key_id)
        if revocations == self._revocations:  # else the answer may be older than a revocation
            self._remember(digest, principal)
        return principal

    def _remember(self, digest: bytes, principal: Principal) -> None:
        self._known[digest] = (time.monotonic() + CACHE_TTL_S, principal)
        self._known.move_to_end(digest)
        while len(self._known) > CACHE_MAX:
            self._known.popitem(last=False)


def push_revocation(bus: Bus, tenant: str, key_id: str) -> None:
    bus.publish(KEYS_REVOKED, msgspec.msgpack.encode(Revocation(tenant, key_id)))
