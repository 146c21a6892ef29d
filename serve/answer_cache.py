"""The exact response cache: who asks for it, and asks the very same again, gets the answer from before, and pays nothing.

It is the tenant's own, twice: by its key in Valkey, and because each answer is sealed under the tenant's key. What is asked
is told apart by all that a model could answer to; how the client wants it (streamed or not) and its tags are not.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Iterable

import msgspec

from events.clock import Clock, SystemClock
from events.errors import PlatformError
from events.keys import Keys
from events.sealing import WITHOUT_KEY, open_bytes, seal_bytes
from serve.chat_request import Call
from serve.http_errors import HttpError
from serve.kept import CachedAnswers
from serve.settings import Model

log = logging.getLogger(__name__)

CACHE_HEADER = "x-tenantry-cache"
TTL_DEFAULT_S, TTL_MAX_S = 3600, 7 * 24 * 3600
_NOT_ASKED = frozenset(("stream", "stream_options", "metadata"))
_TTL = re.compile(r"[0-9]{1,7}")
_SEALED_AS = "cached answer"


class Wish(msgspec.Struct, frozen=True):
    """What a client wants of the cache: answers of up to ``ttl_s`` of age, and, unless ``only_writes``, to be given one."""

    ttl_s: int
    only_writes: bool = False


class Found(msgspec.Struct, frozen=True):
    answer: bytes  # JSON
    age_s: int


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    stored_ms: int
    sealed: bytes


def wish_of(value: str | None) -> Wish | None:
    """What the header asks for: ``on``, a number of seconds, ``refresh`` (a new answer, for those to come), or ``off``. None:
    nothing. Raises HttpError (400).
    """
    match (value or "off").strip().lower():
        case "off":
            return None
        case "on":
            return Wish(TTL_DEFAULT_S)
        case "refresh":
            return Wish(TTL_DEFAULT_S, only_writes=True)
        case text if _TTL.fullmatch(text) and 0 < int(text) <= TTL_MAX_S:
            return Wish(int(text))
    message = f"{CACHE_HEADER} is on, off, refresh, or the age in seconds (1 to {TTL_MAX_S}) that an answer may have"
    raise HttpError(400, "invalid_request", message, param=CACHE_HEADER)


class AnswerCache:
    """Safe for concurrent use. A cache that is away is an empty one."""

    def __init__(
        self, kept: CachedAnswers, keys: Keys, pepper: str, models: Iterable[Model], clock: Clock | None = None
    ) -> None:
        self._kept, self._keys, self._pepper = kept, keys, pepper.encode()
        # an answer is of the model as it was set up then
        self._setups = {model.name: hashlib.sha256(model.model_dump_json().encode()).digest() for model in models}
        self._clock = clock or SystemClock()

    def field(self, tenant: str, call: Call) -> str:
        """Under what the answer to the call lies."""
        asked = {name: value for name, value in call.body.items() if name not in _NOT_ASKED}
        text = msgspec.json.encode([tenant, call.path, call.model.name, asked], order="deterministic")
        return hmac.digest(self._pepper, b"tenantry cache\x00" + self._setups[call.model.name] + text, "sha256").hex()

    async def find(self, tenant: str, field: str, wish: Wish) -> Found | None:
        if wish.only_writes:
            return None
        now_ms = self._now_ms()
        try:
            stored = await self._kept.get(tenant, field, now_ms)
            if stored is None:
                return None
            kept = msgspec.msgpack.decode(stored, type=_Kept)
            age_s = max(0, now_ms - kept.stored_ms) // 1000
            if age_s >= wish.ttl_s:
                return None
            answer = open_bytes(await self._keys.cipher(tenant), _SEALED_AS, kept.sealed)
        except PlatformError as error:
            log.warning("cache.unread tenant=%s: %s", tenant, error)
            return None
        return None if answer is None else Found(answer, age_s)

    async def put(self, tenant: str, field: str, answer: bytes) -> None:
        try:
            cipher = await self._keys.cipher(tenant, create=True)
            if cipher is WITHOUT_KEY:
                return  # its tenant was erased while it was asked
            sealed = seal_bytes(cipher, _SEALED_AS, answer)
            now_ms = self._now_ms()
            await self._kept.put(tenant, field, msgspec.msgpack.encode(_Kept(now_ms, sealed)), now_ms)
        except PlatformError as error:
            log.warning("cache.unwritten tenant=%s: %s", tenant, error)

    def _now_ms(self) -> int:
        return self._clock.now_us() // 1000
