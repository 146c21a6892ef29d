"""A cheap shed in front of a tenant's own limits: who was told to wait waits here, without asking the tenant again.

Only for limits on requests: there the wait is a promise that nothing is granted before it is over, whatever is asked.
It is kept for a second at most, so that a limit that was raised acts at once for all practical purposes.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from events.errors import CommandRefusedError, LimitExceededError

_REMEMBERED_S_MAX = 1.0
_KEYS_MAX = 10_000


class Shed:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[tuple[str, str], tuple[float, float, CommandRefusedError]] = OrderedDict()

    def check(self, tenant: str, key_id: str) -> None:
        """Raises CommandRefusedError, the tenant's own, with what is left of the wait."""
        found = self._until.get((tenant, key_id))
        if found is None:
            return
        now_s = self._clock()
        forget_at_s, granted_at_s, refusal = found
        if now_s >= forget_at_s:
            del self._until[tenant, key_id]
            return
        raise CommandRefusedError(refusal.code, refusal.message, granted_at_s - now_s)

    def note(self, tenant: str, key_id: str, refusal: CommandRefusedError) -> None:
        if refusal.code != LimitExceededError.code or refusal.retry_after_s is None:
            return
        now_s, wait_s = self._clock(), refusal.retry_after_s
        self._until[tenant, key_id] = (now_s + min(wait_s, _REMEMBERED_S_MAX), now_s + wait_s, refusal)
        while len(self._until) > _KEYS_MAX:
            self._until.popitem(last=False)
