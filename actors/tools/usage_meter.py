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
        self._deltas_reported = self._bytes_reported = 0  # of them, those that were there at the last report

    def see(self, message: dict[str, Any]) -> None:
        """A completion, or one chunk of a streamed one."""
        choices = message.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            part = isinstance(choice, dict) and (choice.get("delta") or choice.get("message"))
            if written := _written_bytes(part):
                self._deltas += 1
                self._delta_bytes += written
        self._see_report(message)

    def _see_report(self, message: dict[str, Any]) -> None:
        usage = message.get("usage")
        if not isinstance(usage, dict):
            return
        # an answer that is all input, an embedding say, has no completion tokens
        output = usage.get("completion_tokens", 0 if "data" in message else None)
        read = usage.get("prompt_tokens")
        if _is_count(read) and _is_count(output):
            self._reported = Tokens(read, output, "measured")
            self._deltas_reported, self._bytes_reported = self._deltas, self._delta_bytes

    @property
    def has_begun(self) -> bool:
        return self._deltas > 0 or self._reported is not None

    def tokens(self) -> Tokens:
        """An early report is no account of what was written after it: some servers send one with the first chunk, and a
        client that leaves before the last one must not have the rest for nothing.
        """
        deltas, size = self._deltas - self._deltas_reported, self._delta_bytes - self._bytes_reported
        if self._reported is not None and not deltas:
            return self._reported
        read, written = -(-self._input_bytes // _BYTES_PER_TOKEN), max(deltas, -(-size // _BYTES_PER_TOKEN))
        if self._reported is not None:  # of zeros, where the server did not know yet
            read, written = self._reported.input_tokens or read, self._reported.output_tokens + written
        return Tokens(read, written, "estimated")


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
