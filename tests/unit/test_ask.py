"""What an asker makes of what it hears."""

from typing import Any

import pytest

from events.ask import Asker
from events.bus import ACTIVATE, NoOneListensError
from events.envelope import MOVED, Failed, Ok, Refused, encode, moved_reply
from events.errors import CommandFailedError, CommandRefusedError, NotServedError, OutcomeUnknownError, OverloadedError
from events.tenant import DescribeTenant


class ScriptedBus:
    """Answers asks with what the script says, its last line again and again; activations always succeed."""

    def __init__(self, *script: bytes | Exception) -> None:
        self._script = list(script)
        self.asks = self.activations = 0

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        if subject == ACTIVATE:
            self.activations += 1
            return b""
        self.asks += 1
        answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def ask(bus: ScriptedBus, timeout_s: float = 0.5) -> Ok:
    scripted: Any = bus
    return await Asker(scripted).ask("acme", DescribeTenant(), actor="test", timeout_s=timeout_s)


OK = Ok({}, 7)
FULL = encode(Refused(OverloadedError.code, "full", 0.1))


async def test_a_tenant_that_moved_is_asked_again_at_once() -> None:
    bus = ScriptedBus(encode(moved_reply), encode(moved_reply), encode(OK))
    assert await ask(bus) == OK
    assert (bus.asks, bus.activations) == (3, 0)


async def test_after_a_move_only_the_log_can_say_that_nothing_happened() -> None:
    """The next owner may have heard the first delivery: a mailbox that is full now was perhaps not full then."""
    with pytest.raises(OutcomeUnknownError):
        await ask(ScriptedBus(encode(moved_reply), FULL))
    with pytest.raises(CommandRefusedError):
        await ask(ScriptedBus(FULL))


async def test_a_failure_is_no_move() -> None:
    with pytest.raises(CommandFailedError) as failure:
        await ask(ScriptedBus(encode(Failed("internal_error", "oh"))))
    assert failure.value.code != MOVED


async def test_a_tenant_that_was_activated_and_is_not_heard_of_is_not_asked_in_a_tight_loop() -> None:
    """As while NATS was restarted and the tenant's actor has not connected again: the supervisor is needed by others."""
    bus = ScriptedBus(NoOneListensError())
    with pytest.raises(NotServedError):
        await ask(bus, timeout_s=0.55)
    assert 2 <= bus.activations <= 7
