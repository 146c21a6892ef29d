"""What an asker makes of what it hears."""

from typing import Any

import pytest

from events.ask import Asker
from events.bus import ACTIVATE, NoOneListensError
from events.envelope import MOVED, Failed, Ok, Refused, encode, moved_reply
from events.errors import (
    CommandFailedError,
    CommandRefusedError,
    NotServedError,
    OutcomeUnknownError,
    OverloadedError,
    PlatformError,
    TenantErasedError,
    UnservableError,
)
from events.tenant import DescribeTenant
from events.unserved import Unserved, encode_unserved


class ScriptedBus:
    """Answers asks with what the script says, its last line again and again; activations succeed unless told otherwise."""

    def __init__(self, *script: bytes | Exception, unserved: bytes = b"") -> None:
        self._script, self._unserved = list(script), unserved
        self.asks = self.activations = 0

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        if subject == ACTIVATE:
            self.activations += 1
            return self._unserved
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


HALTED = encode_unserved(Unserved("tenant_closed", "an operator has to look first", is_final=True))
QUARANTINED = encode_unserved(Unserved("tenant_crashed", "it is in quarantine", is_final=True, retry_after_s=412.0))
ERASED = encode_unserved(Unserved(TenantErasedError.code, "tenant 'acme' is erased", is_final=True))


@pytest.mark.parametrize(
    ("unserved", "kind", "text"),
    [
        (HALTED, UnservableError, "tenant 'acme' has no running actor: an operator has to look first"),
        (QUARANTINED, NotServedError, "it is in quarantine"),
        (ERASED, TenantErasedError, "is erased"),
        (b"tenant_erased", TenantErasedError, "tenant_erased"),  # of the release before
    ],
    ids=["halted", "quarantined", "erased", "erased, in words of old"],
)
async def test_who_can_not_be_served_for_now_is_not_asked_for_again_and_again(
    unserved: bytes, kind: type[PlatformError], text: str
) -> None:
    """Each such activation would claim an epoch, and the caller would learn ten seconds later what is known at once."""
    bus = ScriptedBus(NoOneListensError(), unserved=unserved)
    with pytest.raises(kind, match=text) as refused:
        await ask(bus, timeout_s=30)
    assert type(refused.value) is kind
    assert (bus.asks, bus.activations) == (1, 1)
    assert getattr(refused.value, "retry_after_s", None) == (412.0 if unserved is QUARANTINED else None)


async def test_what_was_delivered_before_the_tenant_was_halted_may_have_happened() -> None:
    with pytest.raises(OutcomeUnknownError):
        await ask(ScriptedBus(TimeoutError(), unserved=HALTED))
    with pytest.raises(TenantErasedError):  # and is gone with the tenant
        await ask(ScriptedBus(TimeoutError(), unserved=ERASED))


async def test_a_reason_that_may_pass_is_waited_out() -> None:
    busy = encode_unserved(Unserved("tenant_unavailable", "its actor is being restarted"))
    bus = ScriptedBus(NoOneListensError(), NoOneListensError(), encode(OK), unserved=busy)
    assert await ask(bus, timeout_s=30) == OK
