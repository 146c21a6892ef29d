"""The list of runs folded from events, and the memory that ended runs leave behind in the actor: none."""

import msgspec

from actors.aggregate import State, decide, evolve
from actors.persistent import encode_hook
from actors.run import Saga, Step, register
from events.catalog import DomainCommand
from events.messages import Event
from events.run import FinishStep, StartRun, StepSucceeded, Used, pack
from projections.model import Add, Put, Rank, Unrank
from projections.runs import ALL, RunsProjection, read_row, row_fields
from tests.kit.factories import NOW_US, created, record

register(Saga("list-unit", steps=(Step("one", tool="t"), Step("two", tool="t"))))


class Listed:
    """A read model in memory, as the store's function would keep it."""

    def __init__(self) -> None:
        self.fields: dict[str, bytes] = {}
        self.indexes: dict[str, dict[str, int]] = {}

    def take(self, event: Event) -> None:
        for write in RunsProjection().apply("acme", record(event), event):  # type: ignore[arg-type]
            match write:
                case Add(field, amount):
                    self.fields[field] = str(int(self.fields.get(field, b"0")) + amount).encode()
                case Put(field, value):
                    self.fields[field] = value
                case Rank(index, member, score, like):
                    known = self.indexes.get(like, {}).get(member) if like else score
                    if known is not None:
                        self.indexes.setdefault(index, {})[member] = known
                case Unrank(index, member):
                    self.indexes.get(index, {}).pop(member, None)


def ran(state: State, run_id: str, listed: Listed | None = None) -> State:
    """The state after a run from its start to its end."""
    commands: list[DomainCommand] = [
        StartRun(run_id, "list-unit", pack({"some": "input"})),
        FinishStep(run_id, "one", 1, pack("x" * 100), 5, Used(7, 2, 1)),
        FinishStep(run_id, "two", 1, pack("y" * 100), 5, Used(3)),
    ]
    for command in commands:
        for event in decide(state, "acme", command, NOW_US):
            state = evolve(state, event)
            if listed is not None:
                listed.take(event)
    return state


def test_a_run_is_a_row_with_what_it_cost() -> None:
    listed = Listed()
    ran(evolve(State(), created()), "r", listed)
    row = read_row("r", [listed.fields.get(field) for field in row_fields("r")])
    assert row is not None
    assert (row.saga, row.status, row.ended_us) == ("list-unit", "completed", NOW_US)
    assert (row.cost_nano_usd, row.input_tokens, row.output_tokens) == (10, 2, 1)
    assert listed.indexes[ALL] == {"r": NOW_US}
    assert {index for index, members in listed.indexes.items() if members} == {
        ALL,
        "saga:list-unit",
        "status:completed",
    }


def test_steps_of_child_runs_are_not_counted_twice() -> None:
    listed = Listed()
    listed.take(StepSucceeded("r/child", "one", 1, b"", 1, Used(5)))
    assert listed.fields == {}


def test_runs_that_have_ended_cost_the_actor_nothing() -> None:
    """Neither its state nor a snapshot of it is any larger after thousands of them."""
    state = ran(evolve(State(), created()), "first")
    before = len(msgspec.msgpack.encode(state.runs, enc_hook=encode_hook))
    for number in range(3_000):
        state = ran(state, f"run-{number}")
    assert not state.runs.open
    assert (state.runs.due, state.runs.under_way, state.runs.queued) == ((), {}, ())
    assert len(msgspec.msgpack.encode(state.runs, enc_hook=encode_hook)) == before
