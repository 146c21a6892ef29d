"""An ``Asker`` that counts and times what it asks."""

import time
from typing import Any

from events.ask import Asker
from events.bus import Bus
from events.envelope import Ok
from events.errors import CommandFailedError, CommandRefusedError, OutcomeUnknownError, PlatformError
from events.messages import Command
from events.tenant import ReserveCall
from serve.observe.metrics import Metrics


class MeasuredAsker(Asker):
    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        super().__init__(bus)
        self._metrics = metrics

    async def ask(self, tenant: str, command: Command, **options: Any) -> Ok:
        began_s, outcome, result = time.perf_counter(), "cancelled", "cancelled"
        try:
            ok = await super().ask(tenant, command, **options)
            outcome, result = "ok", "admitted"
            return ok
        except PlatformError as error:
            outcome, result = _outcome(error), error.code
            raise
        finally:
            self._metrics.asked(type(command).__name__, outcome, time.perf_counter() - began_s)
            if isinstance(command, ReserveCall):
                self._metrics.admission(command.model, result)


def _outcome(problem: PlatformError) -> str:
    match problem:
        case CommandRefusedError():
            return "refused"
        case CommandFailedError():
            return "failed"
        case OutcomeUnknownError():
            return "unknown"
        case _:
            return "unavailable"
