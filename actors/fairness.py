"""Fair turns: how much of a shard one tenant takes at a time.

The tenants of a shard share its processor and its group commit. Both are given out in rounds: whoever has commands waiting
takes one turn, all turns go into one append, and whoever still has some queues up behind the others. So a turn's size is
a tenant's share of a round. Alone, a tenant takes many commands at once, which one fsync then serves; beside others, as
few as still make good use of an append. Commands are counted, and their bytes: a few large ones are as much work as
many small ones (deficit round robin, Shreedhar and Varghese, 1995, with nothing carried over, because a turn that takes
one command too large for its share ends there).
"""

from typing import NamedTuple


class Turn(NamedTuple):
    """The most that one turn takes. At least one command is always taken."""

    commands: int
    size_bytes: int


ALONE = Turn(256, 1024 * 1024)
BESIDE_OTHERS = Turn(32, 64 * 1024)
# For how long a tenant that had a turn counts as one of the others: a caller that asks one thing after the other has
# nothing waiting most of the time, and would find the shard taken each time it asks.
OTHERS_REMEMBERED_S = 0.1


class Share:
    """One per shard. Remembers whether more than one tenant has had a turn lately."""

    def __init__(self) -> None:
        self._tenant = ""
        self._switched_at = float("-inf")

    def turn(self, tenant: str, now_s: float) -> Turn:
        """What ``tenant`` may take now; ``now_s`` is monotonic time in seconds."""
        if tenant != self._tenant:
            is_first = not self._tenant
            self._tenant = tenant
            if not is_first:
                self._switched_at = now_s
        return ALONE if now_s - self._switched_at > OTHERS_REMEMBERED_S else BESIDE_OTHERS
