"""What follows for a tenant's runs from what happens to one of them: the next steps, the way back, the parent's step of a child
that ends, the place in the queue that came free. Pure.
"""

import hashlib

from actors.run import registry
from actors.run.definition import Begin, NondeterminismError, Plan, Program
from actors.run.open_runs import Runs, fold, is_to_stop, step_due_us
from actors.run.state import WORK_KINDS, Run, Step, failed_for_good, undo_name
from events.errors import (
    AlreadyExistsError,
    InvalidCommandError,
    NotFoundError,
    PlatformError,
    RunClosedError,
    TooManyRunsError,
)
from events.run import (
    SAGA_MISSING,
    CancelRequested,
    CompensationStuck,
    FailStep,
    FinishStep,
    RetryRule,
    RunBlocked,
    RunEnded,
    RunEvents,
    RunFailing,
    RunPatched,
    RunStarted,
    RunStatus,
    RunUnblocked,
    SignalReceived,
    SignalRun,
    StartRun,
    StepFailed,
    StepKept,
    StepQueued,
    StepRequeued,
    StepScheduled,
    StepSkipped,
    StepSucceeded,
    Used,
    pack,
)

OPEN_RUNS_MAX = 10_000  # a tenant's, so that its state stays of a size that a snapshot can hold
NAME_CHARS_MAX = 100
SIGNALS_MAX = 1_000
# What one step is given, and what a run returns, has to fit into an event; what is given to steps that begin together, into an append.
PAYLOAD_BYTES_MAX, PAYLOADS_BYTES_MAX = 192 * 1024, 3 * 1024 * 1024
CHILD_DEPTH_MAX = 8
FIRED_AT_ONCE_MAX = 500  # events of one append; what is left stays due
EVENTS_WITH_CHILDREN_MAX = 1_000  # beyond it no child begins: what it and its own lead to has to fit in, too
STARTED_TOGETHER_MAX = 200  # steps of a run: each may be a child, and all of them are stopped together, too
_WITH_ITS_PARENT = "its parent run was cancelled or has failed"


class Consequences:
    """Events in the making, and the runs as they will be after them."""

    def __init__(self, runs: Runs, now_us: int) -> None:
        self.runs, self.now_us = runs, now_us
        self.events: list[RunEvents] = []
        self.begins_at = 0  # where those begin that follow from one run

    def emit(self, event: RunEvents) -> None:
        self.events.append(event)
        self.runs = fold(self.runs, event)

    def run(self, run_id: str) -> Run:
        return open_run(self.runs, run_id)

    # commands

    def start(self, command: StartRun) -> None:
        if command.run_id in self.runs.open:
            raise AlreadyExistsError("run", command.run_id)
        if len(self.runs.open) >= OPEN_RUNS_MAX:
            raise TooManyRunsError(len(self.runs.open), OPEN_RUNS_MAX)
        _check_name("run id", command.run_id)
        if "/" in command.run_id:
            raise InvalidCommandError(f"a run id has no slash, got {command.run_id!r}")
        if command.deadline_us and command.deadline_us <= self.now_us:
            raise InvalidCommandError("the run's deadline is over already")
        program = registry.find(command.saga, command.version)
        program.check_input(command.input)
        self._check_kept(command, program)
        self._begin(command, program.version)

    def _check_kept(self, command: StartRun, program: Program) -> None:
        """An effect has one owner: while a run is under way it may still undo what its fork would have, and undo, too."""
        source = self.runs.open.get(command.forked_from)
        for kept in command.kept if source is not None else ():
            assert source is not None
            if undo_name(kept.order.step) in source.steps or _may_undo(program, source, kept.order.step):
                problem = f"it is under way and may undo step {kept.order.step!r}, which the fork would take over"
                raise RunClosedError(source.id, f"{problem}: fork it once it has ended, or at that step")

    def _begin(self, command: StartRun, version: int) -> None:
        self.emit(
            RunStarted(
                command.run_id, command.saga, version, command.input, self.now_us, command.priority,
                command.deadline_us or (command.lasts_us and self.now_us + command.lasts_us), command.parent, command.key_id, command.tags, command.forked_from,
            )
        )  # fmt: skip
        for kept in command.kept:
            self.emit(StepKept(command.run_id, kept.order, kept.args, kept.result))
        self.advance(command.run_id)

    def finish_step(self, command: FinishStep) -> None:
        run = self.run(command.run_id)
        step = run.steps.get(command.step)
        if step is None:
            raise NotFoundError("step", command.step)
        is_begun = step.status in ("scheduled", "retrying") or (step.status == "queued" and step.attempt > 0)
        if is_begun:  # a late answer of an earlier attempt is as good as any
            self._succeed(command.run_id, command.step, command.result, command.duration_us, command.used)
            self.advance(command.run_id)

    def fail_step(self, command: FailStep) -> None:
        run = self.run(command.run_id)
        step = run.steps.get(command.step)
        if step is None:
            raise NotFoundError("step", command.step)
        if step.status == "scheduled" and step.attempt == command.attempt:
            self._fail(run, command.step, command)
            self.advance(command.run_id)

    def signal(self, command: SignalRun) -> None:
        run = self.run(command.run_id)
        _check_name("signal's name", command.name)
        if len(run.signals) >= SIGNALS_MAX:
            raise RunClosedError(run.id, f"{SIGNALS_MAX} signals wait already that no step has asked for")
        self.emit(SignalReceived(run.id, command.name, command.payload))
        self.advance(run.id)

    def cancel(self, run_id: str, reason: str) -> None:
        run = self.run(run_id)
        if run.is_cancelled:
            return
        self.emit(CancelRequested(run_id, reason[:500]))
        if run.failing is None:
            self.emit(RunFailing(run_id, "cancelled", reason[:500] or "cancelled on request", "cancelled"))
        self.advance(run_id)

    # time

    def fire(self, run_id: str) -> None:
        run = self.runs.open[run_id]
        if is_to_stop(run):
            self._stop_child(run_id)
        elif run.deadline_us and run.failing is None and run.deadline_us <= self.now_us:
            self.emit(RunFailing(run_id, "timed_out", "the run took longer than it may", "timed_out"))
        for name, step in list(run.under_way()):
            due_us = step_due_us(step)
            if due_us and due_us <= self.now_us and self._is_still(run_id, name, step):
                self._fire_step(run_id, name, step)
        self.advance(run_id)

    def _is_still(self, run_id: str, name: str, step: Step) -> bool:
        """A child that ended as it began may have changed all of its parent."""
        run = self.runs.open.get(run_id)
        return run is not None and run.steps.get(name) == step

    def _fire_step(self, run_id: str, name: str, step: Step) -> None:
        order = step.order
        assert order is not None
        if step.status == "retrying":
            self._start_step(run_id, Begin(order, step.args), step.attempt + 1)
            if order.kind == "child" and self._waits_for_child(run_id, name):
                self._start_child(run_id, Begin(order, step.args))
        elif order.kind == "timer":
            self._succeed(run_id, name, pack(None), 0, Used())
        elif order.kind == "signal":
            self.emit(StepFailed(run_id, name, 1, "signal_timeout", f"no signal {name!r} came in time", 0, 0, Used()))
        else:
            self.emit(StepRequeued(run_id, name, self.now_us))

    # what follows

    def advance(self, run_id: str) -> None:
        """Until nothing more follows: start what can be started, undo what has to be undone, end what is done."""
        while (run := self.runs.open.get(run_id)) is not None:
            before = len(self.events)
            program = self._program(run)
            if program is None:
                return
            self._take_signals(run_id)
            try:
                self._advance_once(self.runs.open[run_id], program)
            except NondeterminismError as error:
                self.emit(RunBlocked(run_id, str(error), error.code))
                return
            except Exception as error:  # noqa: BLE001 - the saga's own functions: their defect is that run's failure
                self._fail_run(run_id, "saga_failed", f"{type(error).__name__}: {error}")
            if len(self.events) == before:
                return

    def _program(self, run: Run) -> Program | None:
        if (patch := registry.patch_of(run.saga, run.version)) is not None:
            self.emit(RunPatched(run.id, patch.version))
        try:
            program = patch or registry.find(run.saga, run.version)
        except registry.UnknownSagaError as error:
            if run.status != "blocked":
                self.emit(RunBlocked(run.id, str(error), SAGA_MISSING))
            return None
        if run.status == "blocked":
            self.emit(RunUnblocked(run.id))
        return program

    def _take_signals(self, run_id: str) -> None:
        run = self.runs.open[run_id]
        for name, step in list(run.under_way()):
            if step.order is not None and step.order.kind == "signal" and step.status == "scheduled":
                found = next(
                    (payload for sent, payload in self.runs.open[run_id].signals if sent == step.order.target), None
                )
                if found is not None:
                    self._succeed(run_id, name, found, self.now_us - step.due_us, Used())

    def _advance_once(self, run: Run, program: Program) -> None:
        if is_to_stop(run):
            self._stop_child(run.id)
            return
        if run.failing is None and run.broken:
            step = run.steps[run.broken]
            self.emit(RunFailing(run.id, step.code, f"step {run.broken!r}: {step.message}", "compensated"))
            return
        if run.failing is None:
            self._go_on(run, program)
            return
        self._stop_waiting(run.id)
        stopped = self.runs.open.get(run.id)
        if stopped is not None and all(step.order and step.order.undoes for _, step in stopped.under_way()):
            self._go_back(stopped, program)

    def _go_on(self, run: Run, program: Program) -> None:
        plan = program.forward(run)
        if plan.failure is not None:
            self._fail_run(run.id, *plan.failure)
        elif plan.output is not None and len(plan.output) > PAYLOAD_BYTES_MAX:
            problem = f"the run's output has {len(plan.output)} bytes, it may have {PAYLOAD_BYTES_MAX}"
            self._fail_run(run.id, "output_too_large", f"{problem}: return what refers to it")
        elif plan.output is not None:
            self._end(run, "completed", plan.output)
        else:
            self._follow(run.id, plan)

    def _stop_waiting(self, run_id: str) -> None:
        """A failing run starts nothing more: what only waits is skipped, children are cancelled. What runs is waited for, and
        so is a step of which nobody knows whether it took effect. Children that are too many for one append begin to fail,
        and what follows from that is due at once.
        """
        told: list[str] = []
        for name, step in list(self.runs.open[run_id].under_way()):
            order = step.order
            if order is None or order.undoes:
                continue
            waits = step.status in ("retrying", "queued") and not step.may_have_happened
            child = self.runs.open.get(child_id(run_id, name, step.attempt)) if order.kind == "child" else None
            if waits or order.kind in ("signal", "timer") or (order.kind == "child" and child is None):
                self.emit(StepSkipped(run_id, name))  # a child that is not there was about to begin
            elif child is not None and child.failing is None:
                self.emit(RunFailing(child.id, "cancelled", _WITH_ITS_PARENT, "cancelled"))
                told.append(child.id)
        for child_run in told:  # all fail already: one that ends leads back here, and must find nothing to do
            if len(self.events) >= FIRED_AT_ONCE_MAX:
                return
            if is_to_stop(self.runs.open.get(child_run)):
                self._stop_child(child_run)
                self.advance(child_run)

    def _stop_child(self, run_id: str) -> None:
        self.emit(CancelRequested(run_id, _WITH_ITS_PARENT))

    def _go_back(self, run: Run, program: Program) -> None:
        assert run.failing is not None
        plan = program.backward(run)
        if plan.start:
            self._follow(run.id, plan)
            return
        if any(run.under_way()):
            return
        stuck = [step.order.undoes for step in run.steps.values() if step.status == "stuck" and step.order is not None]
        unknown = [
            name for name, step in run.steps.items()
            if step.status == "failed" and step.may_have_happened and program.has_undo(run, name)
            and f"undo:{name}" not in run.steps
        ]  # fmt: skip
        has_undone = any(step.order is not None and step.order.undoes for step in run.steps.values())
        if stuck:
            self._end(
                run, "failed", message=f"{run.failing.message}; could not be undone: {', '.join(stuck)}", has_left=True
            )
        elif unknown:
            text = f"{run.failing.message}; nobody knows whether these took effect: {', '.join(unknown)}"
            self._end(run, "failed", message=text, has_left=True)
        elif run.failing.end == "compensated" and not has_undone:
            self._end(run, "failed")
        else:
            self._end(run, run.failing.end)

    def _fail_run(self, run_id: str, code: str, message: str) -> None:
        run = self.runs.open.get(run_id)
        if run is None:
            return
        if run.failing is None:
            self.emit(RunFailing(run_id, code, message[:1_000], "compensated"))
        elif not any(run.under_way()):  # even the way back is broken: once the rest of it is done a person has to look
            text = f"{run.failing.message}; then {message[:1_000]}"
            self._end(run, "failed", message=text, has_left=True)

    def _follow(self, run_id: str, plan: Plan) -> None:
        if len(plan.start) > STARTED_TOGETHER_MAX and self.run(run_id).failing is None:
            problem = f"{len(plan.start)} steps would begin together, {STARTED_TOGETHER_MAX} may"
            self._fail_run(run_id, "too_many_steps", f"{problem}: begin them in groups, one after the other")
            return
        sizes = [len(begin.args) for begin in plan.start]
        if max(sizes, default=0) > PAYLOAD_BYTES_MAX or sum(sizes) > PAYLOADS_BYTES_MAX:
            limits = f"one may be given {PAYLOAD_BYTES_MAX}, those that begin together {PAYLOADS_BYTES_MAX}"
            problem = f"steps that begin together are given {sum(sizes)} bytes, one of them {max(sizes)}; {limits}"
            self._fail_run(run_id, "args_too_large", problem)
            return
        for name in plan.skip:
            self.emit(StepSkipped(run_id, name))
        for begin in plan.start:
            self._start_step(run_id, begin)
        # Only now: a child may end as it begins, and what that leads to for this run is decided on all of its steps.
        for begin in plan.start:
            if begin.order.kind == "child" and self._waits_for_child(run_id, begin.order.step):
                self._start_child(run_id, begin)

    def _start_step(self, run_id: str, begin: Begin, attempt: int = 1) -> None:
        """Compensations never wait for room. An attempt after a failure does: after an outage all would go out at once."""
        order = begin.order
        if order.kind in WORK_KINDS and not order.undoes and not self.runs.has_room(order.target):
            self.emit(StepQueued(run_id, order, begin.args))
        else:
            self._schedule(run_id, begin, attempt)

    def _waits_for_child(self, run_id: str, name: str) -> bool:
        """Not where a child that began before it has ended the run already, or made it fail."""
        run = self.runs.open.get(run_id)
        step = run.steps[name] if run is not None else None
        return (
            step is not None
            and step.status == "scheduled"
            and child_id(run_id, name, step.attempt) not in self.runs.open
        )

    def _schedule(self, run_id: str, begin: Begin, attempt: int) -> None:
        self.emit(StepScheduled(run_id, begin.order, begin.args, attempt, self.now_us))

    def _start_child(self, parent: str, begin: Begin) -> None:
        order = begin.order
        run = self.run(parent)
        attempt = run.steps[order.step].attempt
        identity = child_id(parent, order.step, attempt)
        problem = ""
        if parent.count("/") >= CHILD_DEPTH_MAX:
            problem = f"runs nest at most {CHILD_DEPTH_MAX} deep"
        elif len(self.events) - self.begins_at > EVENTS_WITH_CHILDREN_MAX:
            problem = (
                f"more than {EVENTS_WITH_CHILDREN_MAX} events would begin it and others together: begin fewer at once"
            )
        elif len(self.runs.open) >= OPEN_RUNS_MAX:
            problem = f"the tenant has {OPEN_RUNS_MAX} open runs already"
        try:
            program = registry.find(order.target)
            program.check_input(begin.args)
        except PlatformError as error:
            problem = str(error)
        if problem:
            self.emit(StepFailed(parent, order.step, attempt, "child_refused", problem, 0, 0, Used()))
            return
        command = StartRun(
            identity, order.target, begin.args, program.version, run.priority, 0, parent, run.key_id, dict(run.tags),
            lasts_us=program.lasts_us(begin.args),
        )  # fmt: skip
        self._begin(command, program.version)

    def _succeed(self, run_id: str, step: str, result: bytes, duration_us: int, used: Used) -> None:
        found = self.runs.open[run_id].steps[step]
        self.emit(StepSucceeded(run_id, step, found.attempt, result, duration_us, used))
        self.fill_room()

    def _fail(self, run: Run, name: str, command: FailStep) -> None:
        step = run.steps[name]
        assert step.order is not None
        rule, attempts = step.order.retry, step.attempt - step.forgiven
        may_retry = command.is_retryable and command.code not in rule.never and attempts < rule.attempts_max
        retry_at_us = 0
        if may_retry:
            delay_us = max(backoff_us(rule, attempts, run.id, name), command.retry_after_us)
            retry_at_us = self.now_us + delay_us
        self.emit(
            StepFailed(
                run.id, name, step.attempt, command.code, command.message[:1_000], retry_at_us, command.duration_us,
                command.used,
                command.may_have_happened,
            )
        )  # fmt: skip
        if step.order.undoes and not may_retry:
            self.emit(CompensationStuck(run.id, name, command.message[:1_000]))
        self.fill_room()

    def fill_room(self) -> None:
        """Steps that waited for room get what came free, by priority, then by age."""
        for _, run_id, name in self.runs.queued:
            if self.runs.is_full:
                return
            step = self.runs.open[run_id].steps[name]
            assert step.order is not None
            if self.runs.has_room(step.order.target):
                self._schedule(run_id, Begin(step.order, step.args), step.attempt + 1)

    def _end(
        self, run: Run, status: RunStatus, output: bytes = b"", message: str = "", *, has_left: bool = False
    ) -> None:
        """``has_left``: it may have effects that nobody has undone, though somebody should."""
        self.emit(RunEnded(run.id, status, self.now_us, output, message=message))
        if run.parent and (parent := self.runs.open.get(run.parent)) is not None:
            self._report_to_parent(parent, run, status, output, message, has_left=has_left)

    def _report_to_parent(
        self, parent: Run, child: Run, status: RunStatus, output: bytes, message: str, *, has_left: bool
    ) -> None:
        name = step_of_child(parent, child.id)
        if name is None:
            return
        duration_us = self.now_us - child.started_us
        if status == "completed":
            self._succeed(parent.id, name, output, duration_us, child.used)
        else:
            text = f"run {child.id} is {status}: {message or child.message}"
            attempt = parent.steps[name].attempt
            has_left = has_left or (status == "failed" and _may_have_left(child))
            self.emit(
                StepFailed(
                    parent.id, name, attempt, f"child_{status}", text[:1_000], 0, duration_us, child.used, has_left
                )
            )
        self.advance(parent.id)


def open_run(runs: Runs, run_id: str) -> Run:
    run = runs.open.get(run_id)
    if run is None:
        raise NotFoundError("open run", run_id)
    return run


def child_id(parent: str, step: str, attempt: int = 1) -> str:
    """A step that is tried again gets a child of its own: the effects of the one before may be undone, so under its id, which
    is in their idempotency keys, they would not happen anew.
    """
    return f"{parent}/{step}" if attempt <= 1 else f"{parent}/{step}:{attempt}"


def _may_have_left(run: Run) -> bool:
    """Whether what made it fail may have had its effect all the same."""
    return any(run.steps[name].may_have_happened and undo_name(name) not in run.steps for name in failed_for_good(run))


def step_of_child(parent: Run, child: str) -> str | None:
    """The step that waits for it, if one does."""
    name = child[len(parent.id) + 1 :]
    for step in (name, name.rpartition(":")[0]):
        found = parent.steps.get(step)
        if found is not None and found.status == "scheduled" and child_id(parent.id, step, found.attempt) == child:
            return step
    return None


def _may_undo(program: Program, run: Run, step: str) -> bool:
    try:
        return program.has_undo(run, step)
    except Exception:  # noqa: BLE001 - its code does not fit the run: who knows
        return True


def _check_name(what: str, text: str) -> None:
    if not 0 < len(text) <= NAME_CHARS_MAX or not text.isprintable():
        raise InvalidCommandError(f"a {what} has 1 to {NAME_CHARS_MAX} printable characters, got {text[:40]!r}")


def backoff_us(rule: RetryRule, attempt: int, run_id: str, step: str) -> int:
    """The delay after a failed attempt, with full jitter. The dice are the run's own: the same history, the same delay."""
    try:
        ceiling = min(rule.max_us, rule.first_us * rule.factor ** (attempt - 1))
    except OverflowError:  # after a thousand attempts
        ceiling = rule.max_us
    digest = hashlib.sha256(f"{run_id}\x00{step}\x00{attempt}".encode()).digest()
    return 1 + int(ceiling * int.from_bytes(digest[:8], "big") / 2**64)
