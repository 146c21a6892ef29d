"""One answer per ``Idempotency-Key``, for calls of models and for writes that are no commands of a tenant: across gateway
replicas and restarts, for a day. (Of a command the tenant's log itself remembers the answer.)

The first request claims the key before anything is paid, and holds the claim as long as it runs; a claim whose gateway has
died ends by itself within seconds. Its answer, whole or streamed, takes the claim's place before the client has its end: a
repeat gets the same bytes, and nothing is paid. An answer that failed is not kept: its repeat is another try.
"""

import asyncio
import contextlib
import hmac
import logging
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from events.errors import CommandIdReusedError, PlatformError
from events.keys import Keys
from events.sealing import WITHOUT_KEY, open_bytes, seal_bytes
from serve.asgi import Responder, Taken
from serve.auth import Principal
from serve.http_errors import HttpError
from serve.kept import KeyedAnswers

log = logging.getLogger(__name__)

KEEP_S = 24 * 3600
CLAIM_S = 15.0  # how long a dead gateway's claim stands in the way
_RENEW_S = CLAIM_S / 3
_ANSWER_BYTES_MAX = 4 * 1024 * 1024  # compressed
_KEY_CHARS_MAX = 255
_SEALED_AS = "answer"


def as_asked(body: bytes) -> bytes:
    """The same for every way to write the same JSON: order of fields, spaces and escapes say nothing. Other bodies as they are."""
    try:
        return msgspec.json.encode(msgspec.json.decode(body), order="deterministic")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What lies under a key. ``request`` tells a repeat from another request; ``answer`` is sealed, b"" while it runs, and
    ``is_lost`` where there was one too large to keep.
    """

    request: bytes
    owner: bytes
    answer: bytes = b""
    is_lost: bool = False


class Claim(msgspec.Struct, frozen=True):
    """A key that is ours: where it lies, and what we have put there."""

    tenant: str
    field: str
    entry: Entry
    value: bytes


class Once:
    """Safe for concurrent use."""

    def __init__(self, kept: KeyedAnswers, keys: Keys, pepper: str) -> None:
        self._kept, self._keys, self._pepper = kept, keys, pepper.encode()
        self._releasing: set[asyncio.Task[None]] = set()

    async def run(
        self, who: Principal, key: str, request: bytes, responder: Responder, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Let ``work`` answer, or answer as it did the first time. ``request`` is all that has to be the same.

        Raises:
            HttpError: The key is none (400), or its first request still runs (409), or its answer was too large to keep.
            CommandIdReusedError: Under this key another request was sent.
            NoRoomError: The tenant has too many keys.
            StoreUnavailableError: Nobody knows; nothing was begun.
            Exception: Whatever ``work`` raises; then the key is free again.
        """
        held = await self._claim(who.tenant, who.key_id, key, request)
        if isinstance(held, Taken):
            await responder.start(held.status, held.headers)
            await responder.body(held.body, more=False)
            return
        responder.before_end = lambda taken: self._keep(held, taken)
        async with self._holding(held):
            try:
                await work()
            finally:
                if not responder.has_ended:
                    self._release(held)

    def name_of(self, who: Principal, key: str, request: bytes) -> str:
        """The same for each repeat of the request under the key, by whoever may repeat it; tells nothing of either."""
        return self._digest("repeat", who.tenant, who.key_id, key, request).hex()

    async def whole(
        self, tenant: str, caller: str, key: str, request: bytes, work: Callable[[], Awaitable[Taken]]
    ) -> Taken:
        """As ``run``, for an answer in one piece. One of 400 and above is not kept."""
        held = await self._claim(tenant, caller, key, request)
        if isinstance(held, Taken):
            return held
        async with self._holding(held):
            is_kept = False
            try:
                taken = await work()
                if taken.status < 400:
                    await self._keep(held, taken)
                    is_kept = True
            finally:
                if not is_kept:
                    self._release(held)
        return taken

    async def _claim(self, tenant: str, caller: str, key: str, request: bytes) -> Claim | Taken:
        """The key is ours now, or there is an answer under it."""
        if not 0 < len(key) <= _KEY_CHARS_MAX:
            message = f"an Idempotency-Key has 1 to {_KEY_CHARS_MAX} characters, got {len(key)}"
            raise HttpError(400, "invalid_request", message, param="idempotency-key")
        entry = Entry(self._digest("request", tenant, caller, request), os.urandom(16))
        claim = Claim(tenant, self._digest("key", tenant, caller, key).hex(), entry, msgspec.msgpack.encode(entry))
        held = await self._kept.claim(tenant, claim.field, claim.value, _ms(CLAIM_S))
        if held is None:
            return claim
        return await self._first_answer(tenant, msgspec.msgpack.decode(held, type=Entry), entry.request, key)

    @contextlib.asynccontextmanager
    async def _holding(self, claim: Claim) -> AsyncIterator[None]:
        renewing = asyncio.create_task(self._renew(claim), name="idempotency-renew")
        try:
            yield
        finally:
            renewing.cancel()

    def _digest(self, *parts: str | bytes) -> bytes:
        """Keyed, so that what lies in the store tells nothing of what was asked."""
        joined = b"\x00".join(part if isinstance(part, bytes) else part.encode() for part in parts)
        return hmac.digest(self._pepper, b"tenantry idempotency\x00" + joined, "sha256")

    async def _first_answer(self, tenant: str, entry: Entry, request: bytes, key: str) -> Taken:
        if entry.request != request:
            raise CommandIdReusedError(key)
        if entry.is_lost:
            message = "under this Idempotency-Key there was an answer, too large to be kept: use another key"
            raise HttpError(409, "answer_not_kept", message, should_retry=False)
        if not entry.answer:
            message = "the first request with this Idempotency-Key still runs: ask again in a moment"
            raise HttpError(409, "in_progress", message, retry_after_s=1.0, should_retry=True)
        plain = open_bytes(await self._keys.cipher(tenant), _SEALED_AS, entry.answer)
        if plain is None:  # its tenant was erased meanwhile
            raise HttpError(409, "answer_not_kept", "the answer is gone", should_retry=False)
        taken = msgspec.msgpack.decode(zlib.decompress(plain), type=Taken)
        return msgspec.structs.replace(taken, headers={**taken.headers, "x-tenantry-replayed": "true"})

    async def _keep(self, claim: Claim, taken: Taken | None) -> None:
        """Before the client has the end of the answer. Where the store is away it gets it all the same: it is paid for."""
        try:
            kept = msgspec.msgpack.encode(await self._answered(claim, taken))
            if not await self._kept.replace(claim.tenant, claim.field, claim.value, kept, _ms(KEEP_S)):
                log.warning("idempotency.claim_lost tenant=%s: a repeat may have run, too", claim.tenant)
        except PlatformError as error:
            log.warning("idempotency.not_kept tenant=%s: %s", claim.tenant, error)

    async def _answered(self, claim: Claim, taken: Taken | None) -> Entry:
        cipher = await self._keys.cipher(claim.tenant, create=True)
        if taken is not None and cipher is not WITHOUT_KEY:  # without: its tenant was erased meanwhile
            packed = zlib.compress(msgspec.msgpack.encode(taken), 1)
            if len(packed) <= _ANSWER_BYTES_MAX:
                return msgspec.structs.replace(claim.entry, answer=seal_bytes(cipher, _SEALED_AS, packed))
        return msgspec.structs.replace(claim.entry, is_lost=True)

    async def _renew(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)  # the beat itself
            with contextlib.suppress(PlatformError):  # the claim outlasts two beats that get lost
                await self._kept.replace(claim.tenant, claim.field, claim.value, claim.value, _ms(CLAIM_S))

    def _release(self, claim: Claim) -> None:
        """Does not wait: it may be a cancelled task that says so."""
        task = asyncio.create_task(self._drop(claim), name="idempotency-release")
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _drop(self, claim: Claim) -> None:
        try:
            await self._kept.replace(claim.tenant, claim.field, claim.value, b"", 0)
        except PlatformError as error:
            log.warning("idempotency.not_released tenant=%s: %s; it ends by itself", claim.tenant, error)

    async def drain(self) -> None:
        """Wait for keys that are being set free."""
        if self._releasing:
            await asyncio.wait(self._releasing)


def _ms(seconds: float) -> int:
    return round(seconds * 1e3)
