"""Who is calling. Tenants' keys are checked by their tenant and remembered for a moment; a revocation is pushed."""

import hashlib
import hmac
import os
import time
from collections import OrderedDict
from typing import Any

import msgspec

from events.ask import Asker
from events.bus import KEYS_REVOKED, Bus
from events.clock import Clock, SystemClock
from events.errors import CommandRefusedError, ForbiddenError, KeyRefusedError, NotFoundError
from events.patience import patiently
from events.store import EventStore
from events.tenant import Authenticate, Scope
from serve.keys import digest_of, parse_key

CACHE_TTL_S = 5.0  # the longest a revoked key can still read if the push got lost; it can't spend at all
CACHE_MAX = 10_000


class Principal(msgspec.Struct, frozen=True):
    """Whose key it is and what it may do. ``models``: the only ones it may call, None: all. ``valid_until_us``: when
    this secret ends, 0: not by itself.
    """

    tenant: str
    key_id: str
    scopes: frozenset[Scope] = frozenset()
    models: frozenset[str] | None = None
    user_id: str = ""
    valid_until_us: int = 0

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


class Revocation(msgspec.Struct, frozen=True, array_like=True):
    """What is known of the key is no longer so; of all keys of the tenant where ``key_id`` is empty."""

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
    """Fails closed: whoever can't be checked gets an error, never a default. What is remembered counts only while the bus
    is there to say that it is no longer so, and never for longer than ``CACHE_TTL_S``.
    """

    def __init__(
        self,
        asker: Asker,
        tenants: KnownTenants,
        pepper: str,
        admin_key: str,
        clock: Clock | None = None,
        *,
        metrics_key: str = "",
    ) -> None:
        self._asker, self._tenants, self._pepper = asker, tenants, pepper
        self._clock = clock or SystemClock()
        self._bus: Bus | None = None
        self._salt = os.urandom(32)
        self._admin = self._fingerprint(admin_key)
        self._metrics = self._fingerprint(metrics_key) if metrics_key else self._admin
        # keyed by the hash of the whole key: a cache keyed by a part of it would mix up keys that share the part
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._revocations = 0

    async def follow_revocations(self, bus: Bus) -> None:
        await bus.subscribe(KEYS_REVOKED, self._on_revoked)
        self._bus = bus

    def _on_revoked(self, data: bytes, _reply_to: str) -> None:
        revoked = msgspec.msgpack.decode(data, type=Revocation)
        self._revocations += 1
        for fingerprint, (_, principal) in list(self._known.items()):
            if principal.tenant == revoked.tenant and revoked.key_id in ("", principal.key_id):
                del self._known[fingerprint]

    def is_admin(self, token: str) -> bool:
        return hmac.compare_digest(self._fingerprint(token), self._admin)

    def may_read_metrics(self, token: str) -> bool:
        return self.is_admin(token) or hmac.compare_digest(self._fingerprint(token), self._metrics)

    def _fingerprint(self, token: str) -> bytes:
        """What a token is known by in this process. A tenth of the time that parsing a key and hashing it for its tenant
        takes; it is never sent or stored.
        """
        return hashlib.blake2b(token.encode(errors="replace"), key=self._salt, digest_size=32).digest()

    async def authenticate(self, header: str | None, scope: Scope) -> Principal:
        """
        Raises:
            KeyRefusedError: Not a valid key of any tenant.
            ForbiddenError: A valid key without the scope.
            CommandRefusedError: Its tenant is suspended, or too busy to say.
            TransientError: It could not be checked.
        """
        principal = await self._identify(header)
        if scope not in principal.scopes:
            raise ForbiddenError(f"this needs a key with the scope {scope!r}")
        return principal

    async def _identify(self, header: str | None) -> Principal:
        token = bearer(header)
        fingerprint = self._fingerprint(token)
        known = self._known.get(fingerprint)
        if known is not None and known[0] > time.monotonic() and self._hears_revocations and self._is_valid(known[1]):
            return known[1]
        key = parse_key(token)
        if not await self._tenants.exists(key.tenant):
            raise KeyRefusedError
        revocations = self._revocations
        command = Authenticate(key.key_id, digest_of(self._pepper, key))
        try:
            ok = await self._asker.ask(key.tenant, command, actor="gateway")
        except CommandRefusedError as refusal:
            if refusal.code not in (KeyRefusedError.code, NotFoundError.code):
                raise  # an overloaded tenant has said nothing about the key
            raise KeyRefusedError from refusal
        principal = _principal(key.tenant, ok.result)
        if revocations == self._revocations:  # else the answer may be older than a revocation
            self._remember(fingerprint, principal)
        return principal

    @property
    def _hears_revocations(self) -> bool:
        return self._bus is not None and self._bus.is_connected

    def _is_valid(self, principal: Principal) -> bool:
        return not 0 < principal.valid_until_us <= self._clock.now_us()

    def _remember(self, fingerprint: bytes, principal: Principal) -> None:
        self._known[fingerprint] = (time.monotonic() + CACHE_TTL_S, principal)
        self._known.move_to_end(fingerprint)
        while len(self._known) > CACHE_MAX:
            self._known.popitem(last=False)


def _principal(tenant: str, identity: dict[str, Any]) -> Principal:
    models = identity["models"]
    return Principal(
        tenant,
        identity["key_id"],
        frozenset(identity["scopes"]),
        None if models is None else frozenset(models),
        identity["user_id"],
        identity["valid_until_us"],
    )


def push_revocation(bus: Bus, tenant: str, key_id: str = "") -> None:
    """Have all gateways forget a key, or all keys of the tenant, and ask the tenant anew."""
    bus.publish(KEYS_REVOKED, msgspec.msgpack.encode(Revocation(tenant, key_id)))
