"""Fair turns: how much of a shard one tenant takes at a time.

The tenants of a shard share its processor and its group commit. Both are given out in rounds: whoever has commands waiting
takes one turn, all turns go into one append, and whoever still has some queues up behind the others. So a turn's size is
a tenant's share of a round. Alone, a tenant takes many commands at once, which one fsync then serves; beside others, not
much more than turns have had lately, so that a flood takes about as much as anybody else, and those who ask for one thing
after the other keep their pace. Commands are counted, and their bytes: a few large ones are as much work as many small
ones (deficit round robin, Shreedhar and Varghese, 1995, with nothing carried over: a turn ends with the command that
exceeds its bytes).
"""

from typing import NamedTuple


class Turn(NamedTuple):
    """The most that one turn takes. At least one command is always taken."""

    commands: int
    size_bytes: int


ALONE = Turn(256, 1024 * 1024)
BESIDE_OTHERS_BYTES = 64 * 1024
# Fewer would waste fsyncs, more would be felt by who waits. Between the two: what turns have had lately, and half as
# much again, so that tenants who are all busy come to take more.
BESIDE_OTHERS_MIN, BESIDE_OTHERS_MAX, _GROWTH = 8, 32, 1.5
_SMOOTHING = 1 / 16
# For how long a tenant that had a turn counts as one of the others: a caller that asks one thing after the other, or a few
# a second, has nothing waiting most of the time, and would find the shard taken each time it asks.
OTHERS_REMEMBERED_S = 1.0


class Share:
    """One per shard. Remembers whether more than one tenant has had a turn lately, and how large turns have been."""

    def __init__(self) -> None:
        self._tenant = ""
        self._is_first = True  # of the tenant's turns in a row
        self._switched_at = float("-inf")
        self._mean_commands = 1.0

    def turn(self, tenant: str, now_s: float) -> Turn:
        """What ``tenant`` may take now; ``now_s`` is monotonic time in seconds."""
        self._is_first = tenant != self._tenant
        if self._is_first:
            if self._tenant:
                self._switched_at = now_s
            self._tenant = tenant
        if now_s - self._switched_at > OTHERS_REMEMBERED_S:
            return ALONE
        commands = int(self._mean_commands * _GROWTH)
        return Turn(max(BESIDE_OTHERS_MIN, min(commands, BESIDE_OTHERS_MAX)), BESIDE_OTHERS_BYTES)

    def took(self, commands: int) -> None:
        """So large the turn was in the end. Of turns in a row the first one counts: those of a flood, while the others think,
        say nothing of what the shard's tenants want.
        """
        if not self._is_first:
            return
        self._mean_commands += (min(commands, BESIDE_OTHERS_MAX) - self._mean_commands) * _SMOOTHING
