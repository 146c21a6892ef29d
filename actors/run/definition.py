"""How a saga is written down: steps one after the other, groups side by side, conditions, waits, child runs; and what
undoes each step.

    order = register(Saga("order", version=1, input=Order, steps=(
        Parallel(
            Step("reserve_stock", tool="stock", args=lambda run: {"sku": run.input.sku},
                 undo=Undo(tool="stock", args=lambda run: {"release": run["reserve_stock"]["id"]})),
            Step("charge", tool="payments", args=lambda run: {"amount": run.input.amount}),
        ),
        Step("ship", tool="shipping", args=lambda run: {"sku": run.input.sku}),
    )))

The functions in it are pure and quick: they see the run's input and the results so far, run inside the tenant's actor, and
are called again whenever the run is planned anew.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from actors.run.state import Run, failed_for_good, undo_name
from events.errors import InvalidCommandError, PlatformError
from events.run import Reference, RetryRule, StepKind, StepOrder, pack, unpack

TOOL_ATTEMPTS = 3
SECONDS_MAX = 100 * 366 * 24 * 3600


class View:
    """A run as the functions of its saga see it: ``run.input``, ``run["step"]`` for a finished step's result (a
    ``Reference`` where it is large), ``run.get("step")`` where it may have been skipped, ``run.id``.
    """

    def __init__(self, run: Run, input_type: type | None, outputs: dict[str, type]) -> None:
        self._run, self._input_type, self._outputs = run, input_type, outputs

    @property
    def id(self) -> str:
        return self._run.id

    @property
    def input(self) -> Any:
        plain = unpack(self._run.input)
        return plain if self._input_type is None else msgspec.convert(plain, self._input_type)

    def __getitem__(self, step: str) -> Any:
        plain = self._run.result(step)
        kind = self._outputs.get(step)
        return plain if kind is None or isinstance(plain, Reference) else msgspec.convert(plain, kind)

    def get(self, step: str, default: Any = None) -> Any:
        found = self._run.steps.get(step)
        return self[step] if found is not None and found.status == "succeeded" else default


class Begin(msgspec.Struct, frozen=True):
    """A step to begin, and the arguments for it: the same bytes at every attempt."""

    order: StepOrder
    args: bytes = pack(None)


Make = Callable[[View], Any]


def _nothing(_run: View) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Retry:
    """``never``: codes of errors that no repeat can mend, besides those that the tool itself calls so."""

    attempts: int = TOOL_ATTEMPTS
    first_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    never: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_s < 0 or self.factor < 1 or self.max_s < self.first_s:
            raise ValueError(f"a retry has 1 attempt or more, a factor of 1 or more and max_s >= first_s >= 0: {self}")

    def rule(self) -> RetryRule:
        return RetryRule(self.attempts, _us(self.first_s), self.factor, _us(self.max_s), self.never)


def _us(seconds: float) -> int:
    if not 0 <= seconds <= SECONDS_MAX:
        raise ValueError(f"a time in a saga is 0 to {SECONDS_MAX} seconds (a hundred years), got {seconds}")
    return round(seconds * 1e6)


_UNDO_RETRY = Retry(attempts=10, first_s=1.0, max_s=300.0)  # what is owed is tried for longer than what is wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Undo:
    """The compensation of a step: done after a failure, for steps that finished. With ``if_unknown`` also for a step that
    failed without anybody knowing whether it took effect (a time-out); then ``run.get(step)`` is None.
    """

    tool: str = ""
    function: str = ""
    args: Make = _nothing
    timeout_s: float = 60.0
    retry: Retry = _UNDO_RETRY
    if_unknown: bool = False

    def __post_init__(self) -> None:
        _one_of(self, "an Undo", "tool", "function")


@dataclasses.dataclass(frozen=True)
class Step:
    """One call. ``name`` is unique in its saga; exactly one of ``tool``, ``function`` and ``model`` says what is called.
    A run goes on where an ``optional`` step fails for good; then ``run.get(step)`` is None.
    """

    name: str
    _: dataclasses.KW_ONLY
    tool: str = ""
    function: str = ""
    model: str = ""
    args: Make = _nothing
    when: Callable[[View], bool] | None = None
    timeout_s: float = 60.0
    retry: Retry = Retry()
    undo: Undo | None = None
    output: type | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        _one_of(self, f"step {self.name!r}", "tool", "function", "model")

    def begin(self, view: View) -> Begin:
        kind, target = _call(self)
        rule = self.retry.rule()
        order = StepOrder(self.name, kind, target, _us(self.timeout_s), rule, is_optional=self.optional)
        return Begin(order, pack(self.args(view)))


@dataclasses.dataclass(frozen=True)
class Signal:
    """Wait for a signal of that name (a person's approval, a webhook); its payload is the step's result. Signals that came
    before are there already. Without ``timeout_s`` it waits for as long as the run may take.
    """

    name: str
    _: dataclasses.KW_ONLY
    timeout_s: float = 0.0
    when: Callable[[View], bool] | None = None
    undo: None = None
    output: type | None = None

    def begin(self, _view: View) -> Begin:
        return Begin(StepOrder(self.name, "signal", self.name, _us(self.timeout_s), RetryRule(1)))


@dataclasses.dataclass(frozen=True)
class Timer:
    """Wait for a time that survives restarts."""

    name: str
    _: dataclasses.KW_ONLY
    seconds: float | Callable[[View], float]
    when: Callable[[View], bool] | None = None
    undo: None = None
    output: None = None

    def begin(self, view: View) -> Begin:
        seconds = self.seconds(view) if callable(self.seconds) else self.seconds
        return Begin(StepOrder(self.name, "timer", self.name, _us(0.0 if seconds < 0 else seconds), RetryRule(1)))


@dataclasses.dataclass(frozen=True)
class Child:
    """A run of another saga; its output is the step's result, and its failure the step's. Cancelled with its parent."""

    name: str
    _: dataclasses.KW_ONLY
    saga: str
    input: Make = _nothing
    when: Callable[[View], bool] | None = None
    undo: Undo | None = None
    output: type | None = None

    def begin(self, view: View) -> Begin:
        return Begin(StepOrder(self.name, "child", self.saga, 0, RetryRule(1)), pack(self.input(view)))


class Parallel:
    """Branches side by side; each is a step or a ``Sequential``. Done when all are."""

    def __init__(self, *branches: "Node") -> None:
        self.branches = branches


class Sequential:
    """Steps one after the other, as a branch of a ``Parallel``."""

    def __init__(self, *branches: "Node") -> None:
        self.branches = branches


Leaf = Step | Signal | Timer | Child
Node = Leaf | Parallel | Sequential


def leaves(nodes: Sequence[Node]) -> Iterator[Leaf]:
    for node in nodes:
        if isinstance(node, Parallel | Sequential):
            yield from leaves(node.branches)
        else:
            yield node


def _call(step: Step | Undo) -> tuple[StepKind, str]:
    if step.tool:
        return "tool", step.tool
    if step.function:
        return "function", step.function
    assert isinstance(step, Step)
    return "model", step.model


def _one_of(thing: object, what: str, *names: str) -> None:
    given = [name for name in names if getattr(thing, name)]
    if len(given) != 1:
        raise ValueError(f"{what} names exactly one of {', '.join(names)}; got {', '.join(given) or 'none'}")


class Plan(msgspec.Struct, frozen=True):
    """What is to be done now: orders that nobody has started yet, steps to skip. ``output`` once everything is done;
    ``failure`` (code, message) where the program itself gives up.
    """

    start: tuple[Begin, ...] = ()
    skip: tuple[str, ...] = ()
    output: bytes | None = None
    failure: tuple[str, str] | None = None


class NondeterminismError(PlatformError):
    """A program asks for something else than what its run's history holds."""

    code = "nondeterministic"


class Program(Protocol):
    """What drives a run, whichever way it is written: a function from what happened so far to what is to be done. Pure,
    and the same history always gives the same plan.
    """

    name: str
    version: int
    patches: tuple[int, ...]  # versions whose runs it takes over

    def check_input(self, payload: bytes) -> None:
        """Raises InvalidCommandError where the program can't begin with that."""
        ...

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of its input: what a model is told where the saga is one of its tools."""
        ...

    def lasts_us(self, payload: bytes) -> int:
        """How long a child run with that input may take; 0: as long as its parent."""
        ...

    def forward(self, run: Run) -> Plan: ...

    def backward(self, run: Run) -> Plan:
        """How to undo what was done, one stage at a time; an empty plan when nothing is left to undo."""
        ...

    def has_undo(self, run: Run, step: str) -> bool: ...

    def gave_up_at(self, run: Run) -> tuple[str, ...]:
        """Steps of a failed run that have to be tried again for it to go on; not those that it went on without."""
        ...


def check_patches(name: str, version: int, patches: tuple[int, ...]) -> tuple[int, ...]:
    """Raises ValueError where a version would take over runs of itself or of a newer one."""
    if bad := [patched for patched in patches if not 1 <= patched < version]:
        raise ValueError(f"saga {name!r} version {version} can take over runs of older versions only, not of {bad[0]}")
    return patches


class Saga:
    """A declared saga. ``input`` and ``output`` are types that msgspec can convert plain data to (None: any).

    Runs finish on the version they began with. ``patches`` names versions whose open runs this one takes over instead, at the
    next thing that happens to them: a step that it has more is done when its turn comes, or at once where that is past; steps that
    have been done it must have, too.
    """

    def __init__(
        self,
        name: str,
        *,
        steps: Sequence[Node],
        version: int = 1,
        input: type | None = None,  # noqa: A002 - the word that users of sagas know
        output: Make | None = None,
        patches: tuple[int, ...] = (),
    ) -> None:
        self.name, self.version, self.steps, self.input_type, self.output = name, version, tuple(steps), input, output
        self.patches = check_patches(name, version, patches)
        self._leaves = {leaf.name: leaf for leaf in leaves(self.steps)}
        self._outputs = {leaf.name: leaf.output for leaf in self._leaves.values() if leaf.output is not None}
        self._check()

    def _check(self) -> None:
        names = [leaf.name for leaf in leaves(self.steps)]
        if not names:
            raise ValueError(f"saga {self.name!r} has no steps")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"saga {self.name!r}: step names are unique, these are not: {', '.join(twice)}")
        for name in (self.name, *names):
            if not name or len(name) > 100 or ":" in name or not name.isprintable():
                raise ValueError(f"a name has 1 to 100 printable characters and no colon, got {name!r}")
        if self.version < 1:
            raise ValueError(f"saga {self.name!r}: versions begin at 1, got {self.version}")

    def check_input(self, payload: bytes) -> None:
        try:
            _ = self._view(Run(input=payload)).input
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise InvalidCommandError(f"the input of saga {self.name!r}: {error}") from error

    def _view(self, run: Run) -> View:
        return View(run, self.input_type, self._outputs)

    def input_schema(self) -> dict[str, Any]:
        return input_schema(self.input_type)

    def lasts_us(self, _payload: bytes) -> int:
        return 0

    def has_undo(self, _run: Run, step: str) -> bool:
        leaf = self._leaves.get(step)
        return leaf is not None and leaf.undo is not None

    def gave_up_at(self, run: Run) -> tuple[str, ...]:
        return failed_for_good(run)

    def forward(self, run: Run) -> Plan:
        self._check_knows(run)
        view = self._view(run)
        start, skip = self._frontier(self.steps, run, view)
        if start or skip or not all(_is_done(run, name) for name in self._leaves):
            return Plan(tuple(start), tuple(skip))
        result = self.output(view) if self.output else None
        return Plan(output=pack(result))

    def _frontier(self, nodes: Sequence[Node], run: Run, view: View) -> tuple[list[Begin], list[str]]:
        """Of nodes one after the other: what of the first unfinished one is not yet begun."""
        for node in nodes:
            if isinstance(node, Parallel):
                parts = [self._frontier((branch,), run, view) for branch in node.branches]
                start, skip = [o for part in parts for o in part[0]], [s for part in parts for s in part[1]]
            elif isinstance(node, Sequential):
                start, skip = self._frontier(node.branches, run, view)
            elif node.name in run.steps:
                start, skip = [], []
            elif node.when is not None and not node.when(view):
                start, skip = [], [node.name]
            else:
                start, skip = [node.begin(view)], []
            if start or skip or not all(_is_done(run, leaf.name) for leaf in leaves((node,))):
                return start, skip
        return [], []

    def backward(self, run: Run) -> Plan:
        self._check_knows(run)
        return Plan(tuple(self._undo(self.steps, run, self._view(run))))

    def _check_knows(self, run: Run) -> None:
        """What it does not know it could not undo."""
        for name, step in run.steps.items():
            if name not in self._leaves and not (step.order is not None and step.order.undoes):
                raise NondeterminismError(
                    f"saga {self.name!r} version {self.version} has no step {name!r}, which the run has begun: register the "
                    f"version it began with, or a patch that has that step"
                )

    def _undo(self, nodes: Sequence[Node], run: Run, view: View) -> list[Begin]:
        """Of nodes one after the other, from the last: what of the first that is not undone is to be undone now."""
        for node in reversed(nodes):
            if isinstance(node, Parallel):
                orders = [order for branch in node.branches for order in self._undo((branch,), run, view)]
            elif isinstance(node, Sequential):
                orders = self._undo(node.branches, run, view)
            else:
                orders = self._undo_leaf(node, run, view)
            if orders or not all(_is_undone(run, leaf) for leaf in leaves((node,))):
                return orders
        return []

    def _undo_leaf(self, leaf: Leaf, run: Run, view: View) -> list[Begin]:
        if leaf.undo is None or not must_undo(run, leaf.name, leaf.undo) or undo_name(leaf.name) in run.steps:
            return []
        return [undo_begin(leaf.name, leaf.undo, view)]


def input_schema(kind: type | None) -> dict[str, Any]:
    return {} if kind is None else msgspec.json.schema(kind)


def must_undo(run: Run, step: str, undo: Undo) -> bool:
    found = run.steps.get(step)
    if found is None:
        return False
    return found.status == "succeeded" or (undo.if_unknown and found.status == "failed" and found.may_have_happened)


def undo_begin(step: str, undo: Undo, view: View) -> Begin:
    kind, target = _call(undo)
    order = StepOrder(undo_name(step), kind, target, _us(undo.timeout_s), undo.retry.rule(), step)
    return Begin(order, pack(undo.args(view)))


def _is_done(run: Run, name: str) -> bool:
    return name in run.steps and run.steps[name].is_done


def _is_undone(run: Run, leaf: Leaf) -> bool:
    if leaf.undo is None or not must_undo(run, leaf.name, leaf.undo):
        return True
    undoing = run.steps.get(undo_name(leaf.name))
    return undoing is not None and undoing.status in ("succeeded", "stuck")
