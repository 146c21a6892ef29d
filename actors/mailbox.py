"""A tenant's mailbox: what was asked and has no turn yet. Bounded in messages and bytes, first in, first out."""

from collections import deque

from actors.fairness import Turn

MAILBOX_MAX = 1_024
MAILBOX_BYTES_MAX = 8 * 1024 * 1024
RETRY_AFTER_S_MAX = 10.0

Message = tuple[bytes, str]  # an encoded envelope, and the subject to reply to


class Mailbox:
    __slots__ = ("_messages", "_size_bytes")

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        return len(self._messages) >= MAILBOX_MAX or self._size_bytes >= MAILBOX_BYTES_MAX

    def put(self, data: bytes, reply_to: str) -> None:
        """To be called only while it ``is_full`` not."""
        self._messages.append((data, reply_to))
        self._size_bytes += len(data)

    def take(self, turn: Turn) -> list[Message]:
        """The first of it, as many as the turn allows and at least one, where there is one."""
        left_bytes, taken = turn.size_bytes, list[Message]()
        while self._messages and len(taken) < turn.commands and left_bytes > 0:
            message = self._messages.popleft()
            left_bytes -= len(message[0])
            taken.append(message)
        self._size_bytes -= turn.size_bytes - left_bytes
        return taken

    def clear(self) -> list[Message]:
        """All that was in it."""
        messages = list(self._messages)
        self._messages.clear()
        self._size_bytes = 0
        return messages

    def wait_s(self, command_took_s: float) -> float:
        """About how long it takes to empty at that pace, in tenths of a second."""
        return max(0.1, min(round(len(self._messages) * command_took_s, 1), RETRY_AFTER_S_MAX))
