"""Known bugs, put in on purpose: a simulation that does not find them proves nothing by finding nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from actors.activation import Activation
from actors.run import consequences, definition, dispatcher, state
from actors.run.definition import Begin, Node, Saga, View
from actors.run.state import Run, Step
from events.run import FinishStep, StepFailed
from events.store import Append, AppendOutcome
from events.work import WorkItem
from tests.simulation.world import Store


def _key_of_the_attempt(tenant: str, run: Run, step: Step, *, again: bool) -> WorkItem:
    """Every attempt is a new effect for the dependency."""
    item = _item(tenant, run, step, again=again)
    return msgspec.structs.replace(item, idempotency_key=f"{item.idempotency_key}-{item.attempt}")


_item = dispatcher._item


def _finish_whatever_it_is(turn: Any, command: FinishStep) -> None:
    """A result that is told again is applied again."""
    step = turn.run(command.run_id).steps.get(command.step)
    if step is not None and step.order is not None:
        turn._succeed(command.run_id, command.step, command.result, command.duration_us, command.used)
        turn.advance(command.run_id)


async def _append_without_answers(store: Store, requests: Sequence[Append]) -> list[AppendOutcome]:
    return await _append_many(store, [msgspec.structs.replace(request, commands=[]) for request in requests])


_append_many = Store.append_many


def _forwards(saga: Saga, nodes: Sequence[Node], run: Run, view: View) -> list[Begin]:
    """Compensates in the order in which it was done."""
    return _undo(saga, tuple(reversed(nodes)), run, view)


_undo = Saga._undo


async def _hand_out_first(activation: Activation, draft: Any) -> Any:
    """Work goes out before its intent is durable."""
    activation._effects.appended(activation.tenant, draft.state, draft.events, activation._cipher)
    return await _commit(activation, draft)


_commit = Activation._commit


def _forget_the_unknown(run: Run, event: StepFailed) -> Run:
    """That an earlier attempt may have taken effect is forgotten with the next one's failure."""
    after = _evolve_failed(run, event)
    step = msgspec.structs.replace(after.steps[event.step], may_have_happened=event.may_have_happened)
    return msgspec.structs.replace(after, steps={**after.steps, event.step: step})


_evolve_failed = state._evolve_failed


BUGS: dict[str, tuple[tuple[Any, str, Callable[..., Any]], ...]] = {
    "key-per-attempt": ((dispatcher, "_item", _key_of_the_attempt),),
    "result-applied-twice": (
        (consequences.Consequences, "finish_step", _finish_whatever_it_is),
        (Store, "append_many", _append_without_answers),
    ),
    "undone-forwards": ((definition.Saga, "_undo", _forwards),),
    "handed-out-first": ((Activation, "_commit", _hand_out_first),),
    "unknown-forgotten": ((state, "_evolve_failed", _forget_the_unknown),),
}


@contextmanager
def planted(bug: str) -> Iterator[None]:
    """Inside, the platform has the bug ("": none)."""
    assert not bug or bug in BUGS, f"unknown bug {bug!r}, there are: {', '.join(BUGS)}"
    with ExitStack() as stack:
        for place, name, replacement in BUGS.get(bug, ()):
            stack.enter_context(patch.object(place, name, replacement))
        yield
