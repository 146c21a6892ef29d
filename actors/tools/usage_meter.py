"""What a model call has used so far: as the upstream reports it, or estimated where it breaks off before it does."""

from typing import Any, TypeGuard

import msgspec

from events.tenant import UsageSource

_NOT_WRITTEN = ("role", "id", "type", "index")
_BYTES_PER_TOKEN = 4  # English text; marked as an estimate wherever it is used


class Tokens(msgspec.Struct, frozen=True):
    input_tokens: int
    output_tokens: int
    source: UsageSource


class UsageMeter:
    def __init__(self, input_bytes: int) -> None:
        self._input_bytes = input_bytes
        self._reported: Tokens | None = None
        self._deltas = self._delta_bytes = 0

    def see(self, message: dict[str, Any]) -> None:
        """A completion, or one chunk of a streamed one."""
        usage = message.get("usage")
        if isinstance(usage, dict):
            # an answer that is all input, an embedding say, has no completion tokens
            written = usage.get("completion_tokens", 0 if "data" in message else None)
            read = usage.get("prompt_tokens")
            if _is_count(read) and _is_count(written):
                self._reported = Tokens(read, written, "measured")
        choices = message.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            part = isinstance(choice, dict) and (choice.get("delta") or choice.get("message"))
            if written := _written_bytes(part):
                self._deltas += 1
                self._delta_bytes += written

    @property
    def has_begun(self) -> bool:
        return self._deltas > 0 or self._reported is not None

    def tokens(self) -> Tokens:
        if self._reported is not None:
            return self._reported
        output = max(self._deltas, -(-self._delta_bytes // _BYTES_PER_TOKEN))
        return Tokens(-(-self._input_bytes // _BYTES_PER_TOKEN), output, "estimated")


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**31


def _written_bytes(part: object) -> int:
    """Bytes that a model wrote: content, reasoning, arguments of tools, whatever its server calls them."""
    match part:
        case str():
            return len(part.encode())
        case dict():
            return sum(_written_bytes(value) for name, value in part.items() if name not in _NOT_WRITTEN)
        case list():
            return sum(map(_written_bytes, part))
        case _:
            return 0
