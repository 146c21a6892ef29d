"""The order of one tenant's messages, whatever order the broker brings them in. Pure.

A message that is given back for a while (parked) holds up all that come after it, and nobody else's.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Lane(Generic[Message]):
    """Messages by their number in the queue. ``ready`` only ever shows what nothing earlier is missing before."""

    def __init__(self) -> None:
        self._order: list[int] = []  # of what is held; a settled one may linger until it comes to the front
        self._held: dict[int, Message] = {}
        self._parked: list[int] = []

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def parked(self) -> int:
        return len(self._parked)

    @property
    def is_empty(self) -> bool:
        return not self._held and not self._parked

    def arrive(self, sequence: int, message: Message) -> None:
        """A redelivery takes the place of its older self."""
        self._unpark(sequence)
        if sequence not in self._held:
            if not self._order or sequence > self._order[-1]:
                self._order.append(sequence)
            else:
                at = bisect_left(self._order, sequence)
                if at == len(self._order) or self._order[at] != sequence:
                    insort(self._order, sequence)
        self._held[sequence] = message

    def ready(self, limit: int) -> list[tuple[int, Message]]:
        """The earliest that are held, up to the first that is parked."""
        barrier = self._parked[0] if self._parked else None
        found: list[tuple[int, Message]] = []
        for sequence in self._order:
            if len(found) == limit or (barrier is not None and sequence > barrier):
                break
            if sequence in self._held:
                found.append((sequence, self._held[sequence]))
        return found

    def settle(self, sequences: Iterable[int]) -> None:
        """They are done with."""
        for sequence in sequences:
            self._held.pop(sequence, None)
        gone = 0
        while gone < len(self._order) and self._order[gone] not in self._held:
            gone += 1
        del self._order[:gone]

    def park(self, keep: int = 0) -> list[Message]:
        """Give back all that are held but for the earliest ``keep``; they come again, as arrivals."""
        sequences = [sequence for sequence in self._order if sequence in self._held][keep:]
        for sequence in sequences:
            insort(self._parked, sequence)
        given_back = [self._held.pop(sequence) for sequence in sequences]
        self._order = [sequence for sequence in self._order if sequence in self._held]
        return given_back

    def _unpark(self, sequence: int) -> None:
        at = bisect_left(self._parked, sequence)
        if at < len(self._parked) and self._parked[at] == sequence:
            del self._parked[at]
