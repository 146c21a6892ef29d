"""A saga written as a plain async function. Calls that are in the run's history return what they returned then, the first ones
that are not become the next steps; where it waits for them it is held, and after a crash it is called again from its first line.

    @saga_function("refund", version=1, input=Refund)
    async def refund(flow: Flow, given: Refund) -> str:
        charge = await flow.tool("find", "payments", {"order": given.order})
        await flow.signal("approved", timeout_s=86_400)
        done, _ = await flow.gather(
            flow.tool("refund", "payments", {"charge": charge["id"]}),
            flow.tool("tell", "email", {"to": charge["email"]}),
        )
        return done["id"]

So it may await nothing but the flow, and what it asks for may depend on its input and earlier results only: where it asks
for something else than its history holds, the run is blocked with an error that names the difference.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import msgspec

from actors.run.definition import (
    Begin,
    NondeterminismError,
    Plan,
    Signal,
    Timer,
    Undo,
    View,
    check_patches,
    input_schema,
    must_undo,
    undo_begin,
)
from actors.run.definition import (
    Step as StepDefinition,
)
from actors.run.registry import register
from actors.run.state import Run, Step, undo_name
from events.errors import InvalidCommandError, PlatformError
from events.run import StepOrder, pack, unpack


class StepFailedError(PlatformError):
    """A step of the run failed for good; a saga may catch it and go another way."""

    def __init__(self, step: str, code: str, message: str) -> None:
        super().__init__(step, code, message)
        self.step, self.code, self.message = step, code, message

    def __str__(self) -> str:
        return f"step {self.step!r}: {self.message}"


class Call:
    """A step that a saga awaits, alone or gathered with others."""

    def __init__(self, begin: Begin, undo: Undo | None) -> None:
        self.begin, self.order, self.undo = begin, begin.order, undo

    def __await__(self) -> Generator["tuple[Call, ...]", tuple[Any, ...], Any]:
        (result,) = yield (self,)
        if isinstance(result, StepFailedError):
            raise result
        return result


class Gathered:
    def __init__(self, calls: tuple[Call, ...]) -> None:
        self._calls = calls

    def __await__(self) -> Generator[tuple[Call, ...], tuple[Any, ...], tuple[Any, ...]]:
        results = yield self._calls
        for result in results:
            if isinstance(result, StepFailedError):
                raise result
        return results


class Flow:
    """What a saga function can do. Step names are unique in a run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def tool(self, name: str, tool: str, args: Any = None, **options: Any) -> Call:
        """Options: ``timeout_s``, ``retry``, ``undo``, as those of ``Step``."""
        return self._call(StepDefinition(name, tool=tool, args=lambda _: args, **options))

    def function(self, name: str, function: str, args: Any = None, **options: Any) -> Call:
        return self._call(StepDefinition(name, function=function, args=lambda _: args, **options))

    def model(self, name: str, model: str, args: Any = None, **options: Any) -> Call:
        return self._call(StepDefinition(name, model=model, args=lambda _: args, **options))

    def signal(self, name: str, *, timeout_s: float = 0.0) -> Call:
        return self._call(Signal(name, timeout_s=timeout_s))

    def sleep(self, name: str, seconds: float) -> Call:
        return self._call(Timer(name, seconds=seconds))

    def gather(self, *calls: Call) -> Awaitable[tuple[Any, ...]]:
        """Side by side; raises the first failure once all have ended."""
        return Gathered(calls)

    @staticmethod
    def _call(leaf: StepDefinition | Signal | Timer) -> Call:
        begin = leaf.begin(View(Run(), None, {}))
        order = msgspec.structs.replace(begin.order, is_optional=True)  # it may catch the failure
        return Call(Begin(order, begin.args), leaf.undo)


REPLAYS_KEPT_MAX = 1_024  # functions of runs, of each saga; the others are called anew when their run goes on
SagaBody = Callable[[Flow, Any], Coroutine[Any, Any, Any]]


class FunctionSaga:
    def __init__(
        self, name: str, body: SagaBody, *, version: int, input_type: type | None, patches: tuple[int, ...] = ()
    ) -> None:
        self.name, self.version, self._body, self._input_type = name, version, body, input_type
        self.patches = check_patches(name, version, patches)
        self._replays: OrderedDict[str, _Replay] = OrderedDict()

    def check_input(self, payload: bytes) -> None:
        try:
            self._input(payload)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise InvalidCommandError(f"the input of saga {self.name!r}: {error}") from error

    def _input(self, payload: bytes) -> Any:
        plain = unpack(payload)
        return plain if self._input_type is None else msgspec.convert(plain, self._input_type)

    def input_schema(self) -> dict[str, Any]:
        return input_schema(self._input_type)

    def lasts_us(self, _payload: bytes) -> int:
        return 0

    def has_undo(self, run: Run, step: str) -> bool:
        return self._replayed(run).seen.get(step) is not None

    def gave_up_at(self, run: Run) -> tuple[str, ...]:
        """Of what it awaited last: a failure before that it has caught."""
        replay = self._replayed(run)
        last = max(replay.turns.values(), default=0)
        names = [name for name, turn in replay.turns.items() if turn == last]
        return tuple(name for name in names if name in run.steps and run.steps[name].status == "failed")

    def forward(self, run: Run) -> Plan:
        replay = self._replayed(run)
        start = tuple(call.begin for call in replay.waits_for if call.order.step not in run.steps)
        if (start or replay.failure) and (missing := replay.missing(run)):
            raise NondeterminismError(
                f"saga {self.name!r} version {self.version} now {_does(start, replay)} where the run has done "
                f"{missing!r}: its code has changed under the run, or it depends on something but its input"
            )
        return Plan(start, (), replay.output, replay.failure)

    def backward(self, run: Run) -> Plan:
        """The newest finished step first, one at a time. Raises NondeterminismError where it does not know how to undo one."""
        view = View(run, self._input_type, {})
        replay = self._replayed(run)
        if missing := replay.missing(run):
            raise NondeterminismError(
                f"saga {self.name!r} version {self.version} does not come to step {missing!r}, which the run has begun, and so "
                f"can't say what undoes it: register the code that the run has begun with"
            )
        # What may have happened has no place among what finished: it has one among what it was awaited with.
        names = sorted(replay.seen, key=lambda name: (replay.turns[name], _finished(run, name)), reverse=True)
        for name in names:
            undo = replay.seen[name]
            if undo is None or not must_undo(run, name, undo):
                continue
            undoing = run.steps.get(undo_name(name))
            if undoing is None:
                return Plan((undo_begin(name, undo, view),))
            if undoing.status not in ("succeeded", "stuck"):
                return Plan()
        return Plan()

    def _replayed(self, run: Run) -> "_Replay":
        """The function as far as the run's history takes it: from where it was left when the run was planned last, or anew."""
        replay = self._replays.pop(run.id, None)  # where what follows raises, it is no longer kept
        if replay is None or run.finished >= max(1, 2 * replay.checked_at) or not replay.is_of(run):
            given = self._input(run.input)
            replay = _Replay(f"saga {self.name!r} version {self.version}", run, self._body, given)
        replay.go_on(run)
        self._replays[run.id] = replay
        if len(self._replays) > REPLAYS_KEPT_MAX:
            self._replays.popitem(last=False)
        return replay


class _Replay:
    """A saga function on its way through a run's history, held between two decisions where it waits.

    That it is a cache changes nothing: it goes on only for a run that has the input and all the results which it was given. What
    is not a function of those shows when it is called anew; that is done after 1, 2, 4, 8 … steps, so a run of n steps costs
    at most 3n of them.
    """

    def __init__(self, title: str, run: Run, body: SagaBody, given: Any) -> None:
        self._title, self._input = title, run.input
        self._body = body(Flow(run.id), given)
        self.seen: dict[str, Undo | None] = {}
        self.turns: dict[str, int] = {}  # which steps were awaited together, and which before others
        self.taken: dict[str, Step] = {}  # steps whose results it was given
        self.waits_for: tuple[Call, ...] = ()
        self.output: bytes | None = None
        self.failure: tuple[str, str] | None = None
        self.checked_at = run.finished  # so many steps had finished when it was called
        self._send(None)

    def is_of(self, run: Run) -> bool:
        """Whether the run has all that went into it: mostly the very same objects, so this is quick."""
        return self._input == run.input and self.taken.items() <= run.steps.items()

    def missing(self, run: Run) -> str | None:
        """A step that the run has begun and the function has not asked for."""
        begun = sum(name in run.steps for name in (call.order.step for call in self.waits_for)) + len(self.taken)
        if begun == len(run.steps):  # as most often, and said at once
            return None
        return next(
            (name for name, step in run.steps.items() if name not in self.seen and not _is_undo(step.order)), None
        )

    def go_on(self, run: Run) -> None:
        """Until it waits for what has not ended, is done, or has failed. Raises NondeterminismError."""
        while self.waits_for:
            for call in self.waits_for:
                self._check(call, run)
            names = [call.order.step for call in self.waits_for]
            if not all(_has_ended(run.steps.get(name)) for name in names):
                return
            self.taken |= {name: run.steps[name] for name in names}
            self._send(tuple(_result(name, run) for name in names))

    def _check(self, call: Call, run: Run) -> None:
        found = run.steps.get(call.order.step)
        if found is not None and _differs(found, call.begin):
            raise NondeterminismError(
                f"{self._title} now calls {call.order.target!r} for step {call.order.step!r} with other arguments than the "
                f"run's history holds"
            )

    def _send(self, results: tuple[Any, ...] | None) -> None:
        self.waits_for = ()
        try:
            try:
                calls = self._body.send(results)
            except StopIteration as end:
                self.output = pack(end.value)
                return
        except NondeterminismError:
            raise
        except StepFailedError as error:
            self.failure = (error.code, str(error))
            return
        except Exception as error:  # noqa: BLE001 - the saga's own defect fails its run; what it did is known and undone
            self.failure = ("saga_failed", f"{type(error).__name__}: {error}")
            return
        if not isinstance(calls, tuple) or not all(isinstance(call, Call) for call in calls):
            self._body.close()
            raise NondeterminismError(f"{self._title} awaits {calls!r}: it may await only its flow")
        turn = len(self.seen)
        for call in calls:
            if call.order.step in self.seen:
                raise NondeterminismError(f"{self._title} uses the step name {call.order.step!r} twice")
            self.seen[call.order.step] = call.undo
            self.turns[call.order.step] = turn
        self.waits_for = calls


def _does(start: tuple[Begin, ...], replay: _Replay) -> str:
    return f"asks for {start[0].order.step!r}" if start else f"fails ({': '.join(replay.failure or ())[:200]})"


def _finished(run: Run, name: str) -> int:
    return run.steps[name].finished if name in run.steps else 0


def _has_ended(step: Step | None) -> bool:
    """Skipped is what it waited for when the run began to fail: that never ends, and nothing behind it was begun."""
    return step is not None and step.status in ("succeeded", "failed") and step.is_done


def _result(name: str, run: Run) -> Any:
    step = run.steps[name]
    return StepFailedError(name, step.code, step.message) if step.status == "failed" else unpack(step.result)


def _differs(found: Step, begin: Begin) -> bool:
    """In what is done; time-outs and retries may change with the code."""
    if found.order is None:
        return True
    return (found.order.kind, found.order.target, found.args) != (begin.order.kind, begin.order.target, begin.args)


def _is_undo(order: StepOrder | None) -> bool:
    return order is not None and bool(order.undoes)


def saga_function(
    name: str,
    *,
    version: int = 1,
    input: type | None = None,  # noqa: A002 - the word that users of sagas know
    patches: tuple[int, ...] = (),
) -> Callable[[SagaBody], FunctionSaga]:
    """Register an async function ``(flow, input) -> output`` as a saga. ``patches`` as those of ``Saga``; up to where a run has
    come, the function must do what the version before did.
    """

    def wrap(body: SagaBody) -> FunctionSaga:
        return register(FunctionSaga(name, body, version=version, input_type=input, patches=patches))

    return wrap
