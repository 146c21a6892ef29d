"""One answer per ``Idempotency-Key``, for calls of models: across gateway replicas and restarts, for a day.

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
from collections.abc import Awaitable, Callable

import msgspec

from events.clock import Clock, SystemClock
from events.errors import CommandIdReusedError, PlatformError
from events.keys import Keys
from events.sealing import open_bytes, seal_bytes
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


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What lies under a key. ``request`` tells a repeat from another request; ``answer`` is sealed, b"" while it runs, and
    ``is_lost`` where there was one too large to keep.
    """

    request: bytes
    owner: bytes
    answer: bytes = b""
    is_lost: bool = False


class Once:
    """Safe for concurrent use."""

    def __init__(self, kept: KeyedAnswers, keys: Keys, pepper: str, clock: Clock | None = None) -> None:
        self._kept, self._keys, self._pepper = kept, keys, pepper.encode()
        self._clock = clock or SystemClock()
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
        if not 0 < len(key) <= _KEY_CHARS_MAX:
            message = f"an Idempotency-Key has 1 to {_KEY_CHARS_MAX} characters, got {len(key)}"
            raise HttpError(400, "invalid_request", message, param="idempotency-key")
        field = self._digest("key", who.tenant, who.key_id, key).hex()
        open_entry = Entry(self._digest("request", who.tenant, who.key_id, request), os.urandom(16))
        claim = msgspec.msgpack.encode(open_entry)
        held = await self._kept.claim(who.tenant, field, claim, self._now_ms(), self._now_ms(CLAIM_S))
        if held is not None:
            await self._repeat(who.tenant, msgspec.msgpack.decode(held, type=Entry), open_entry.request, key, responder)
            return
        responder.before_end = lambda taken: self._keep(who.tenant, field, open_entry, taken)
        renewing = asyncio.create_task(self._renew(who.tenant, field, claim), name="idempotency-renew")
        try:
            await work()
        finally:
            renewing.cancel()
            if not responder.has_ended:
                self._release(who.tenant, field, claim)

    def _digest(self, *parts: str | bytes) -> bytes:
        """Keyed, so that what lies in the store tells nothing of what was asked."""
        joined = b"\x00".join(part if isinstance(part, bytes) else part.encode() for part in parts)
        return hmac.digest(self._pepper, b"tenantry idempotency\x00" + joined, "sha256")

    def _now_ms(self, plus_s: float = 0.0) -> int:
        return int(self._clock.now_us() / 1e3 + plus_s * 1e3)

    async def _repeat(self, tenant: str, entry: Entry, request: bytes, key: str, responder: Responder) -> None:
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
        await responder.start(taken.status, {**taken.headers, "x-tenantry-replayed": "true"})
        await responder.body(taken.body, more=False)

    async def _keep(self, tenant: str, field: str, open_entry: Entry, taken: Taken | None) -> None:
        """Before the client has the end of the answer. Where the store is away it gets it all the same: it is paid for."""
        try:
            value = msgspec.structs.replace(open_entry, is_lost=True)
            if taken is not None:
                packed = zlib.compress(msgspec.msgpack.encode(taken), 1)
                if len(packed) <= _ANSWER_BYTES_MAX:
                    sealed = seal_bytes(await self._keys.cipher(tenant, create=True), _SEALED_AS, packed)
                    value = msgspec.structs.replace(open_entry, answer=sealed)
            claim, kept = msgspec.msgpack.encode(open_entry), msgspec.msgpack.encode(value)
            if not await self._kept.replace(tenant, field, claim, kept, self._now_ms(KEEP_S)):
                log.warning("idempotency.claim_lost tenant=%s: a repeat may have run, too", tenant)
        except PlatformError as error:
            log.warning("idempotency.not_kept tenant=%s: %s", tenant, error)

    async def _renew(self, tenant: str, field: str, claim: bytes) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)  # the beat itself
            with contextlib.suppress(PlatformError):  # the claim outlasts two beats that get lost
                await self._kept.replace(tenant, field, claim, claim, self._now_ms(CLAIM_S))

    def _release(self, tenant: str, field: str, claim: bytes) -> None:
        """Does not wait: it may be a cancelled task that says so."""
        task = asyncio.create_task(self._drop(tenant, field, claim), name="idempotency-release")
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _drop(self, tenant: str, field: str, claim: bytes) -> None:
        try:
            await self._kept.replace(tenant, field, claim, b"", 0)
        except PlatformError as error:
            log.warning("idempotency.not_released tenant=%s: %s; it ends by itself", tenant, error)

    async def drain(self) -> None:
        """Wait for keys that are being set free."""
        if self._releasing:
            await asyncio.wait(self._releasing)
