"""Clients that issue commands with ids, repeat them, give up on some, and write down what they were told."""

import random
from collections.abc import Callable

import msgspec

from events.ask import Asker
from events.errors import OutcomeUnknownError, PlatformError
from events.messages import Command, Query
from events.tenant import CreateTenant, DescribeTenant, IssueKey, ReserveCall, SetBudget, SettleCall
from tests.kit.checker import CLIENT
from tests.kit.history import Kind, Recorder

BUDGET, COST_MAX = 100, 10
_PATIENCE_S, _IMPATIENCE_S = 20.0, 0.03
_IMPATIENT = 0.25  # of what they ask: some six commands are under way at a fault, and some of them have to be given up
_HOUR_US = 3_600_000_000


class Client:
    """One at a time, as a caller that waits for its answers. ``dice`` decides what it asks."""

    def __init__(self, number: int, tenant: str, asker: Asker, recorder: Recorder, seed: int) -> None:
        self.name, self.tenant = f"{CLIENT}{number}", tenant
        self._asker, self._recorder = asker, recorder
        self._dice = random.Random(f"{seed} {self.name}")
        self._sent: list[tuple[str, Command]] = []
        self._open_calls: list[str] = []
        self._count = 0
        self._limit: int | None = None  # the tenant's budget, where it was this client that set it

    async def set_up(self) -> None:
        """The tenant, its key and its budget."""
        for command in (CreateTenant("Test"), IssueKey("k1", "default", b"d" * 32)):
            await self._insist(command)
        await self._raise_budget(0)

    async def _raise_budget(self, limit: int) -> None:
        """It is used up again and again, and never for good: a tenant that can't reserve any more writes no more events,
        and a projection has nothing to do.
        """
        self._limit = limit + BUDGET
        await self._insist(SetBudget(self._limit, "total"))

    async def _insist(self, command: Command) -> None:
        command_id = self._new_id()
        while await self._send(command, command_id, _PATIENCE_S) != "ok":
            pass

    async def run(self, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            await self._step()

    async def _step(self) -> None:
        patience_s = _IMPATIENCE_S if self._dice.random() < _IMPATIENT else _PATIENCE_S
        throw = self._dice.random()
        if throw < 0.45 or not self._sent:
            await self._reserve(patience_s)
        elif throw < 0.65 and self._open_calls:
            await self._settle(patience_s)
        elif 0.65 <= throw < 0.67 and self._limit is not None:
            await self._raise_budget(self._limit)
        elif throw < 0.80:
            await self._send(DescribeTenant(), self._new_id(), patience_s)
        elif throw < 0.93:  # a repeat
            command_id, command = self._dice.choice(self._sent)
            await self._send(command, command_id, patience_s)
        else:  # another body under a known id
            command_id, _ = self._dice.choice(self._sent)
            await self._send(self._reservation(f"x-{command_id}"), command_id, patience_s)

    async def _reserve(self, patience_s: float) -> None:
        command_id = self._new_id()
        call = f"{self.name}-call-{self._count}"
        command = self._reservation(call)
        self._sent.append((command_id, command))
        if await self._send(command, command_id, patience_s) == "ok":
            self._open_calls.append(call)

    def _reservation(self, call: str) -> ReserveCall:
        return ReserveCall(call, "k1", "small", COST_MAX, _HOUR_US)

    async def _settle(self, patience_s: float) -> None:
        call = self._open_calls.pop(self._dice.randrange(len(self._open_calls)))
        command_id, command = self._new_id(), SettleCall(call, 1, 1, self._dice.randint(1, 3), "ok", "measured")
        self._sent.append((command_id, command))
        await self._send(command, command_id, patience_s)

    def _new_id(self) -> str:
        self._count += 1
        return f"{self.name}-{self._count}"

    async def _send(self, command: Command, command_id: str, patience_s: float) -> Kind:
        body = msgspec.json.encode(command).decode()
        operation = self._recorder.invoke(
            self.name,
            self.tenant,
            type(command).__name__,
            command_id,
            body,
            writes=not isinstance(command, Query),
        )
        try:
            ok = await self._asker.ask(
                self.tenant, command, actor=self.name, command_id=command_id, timeout_s=patience_s
            )
        except OutcomeUnknownError as error:
            self._recorder.end(operation, "info", code=error.code)
            return "info"
        except PlatformError as error:
            self._recorder.end(operation, "fail", code=error.code)
            return "fail"
        self._recorder.end(operation, "ok", position=ok.position, result=ok.result)
        return "ok"
