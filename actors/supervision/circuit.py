"""One breaker for the whole cluster, fed by reports of many callers. Pure; time and chance are arguments.

It opens by volume *and* by quorum: all callers together have to see a rate that is too bad on enough calls, and more than
half of those that call have to see it themselves. One node with a broken network, however busy, opens nothing for others
(its own local breaker keeps it from trying).

Half-open, callers don't probe in step: one caller at a time may try one call, the next one after it succeeded. A caller
that has nothing to try hands its turn on after ``TURN_S``, one that is at it after ``probe_timeout_s``.
"""

from collections.abc import Mapping

import msgspec

from actors.policies.breaker import BreakerRules, Status, too_bad
from actors.policies.window import Counts, TimeWindow

TURN_S = 0.5
WINDOW_S = 10.0  # for rules that count calls: reports say how many, not in which order
_CALLER_GONE_S = 30.0


class Caller(msgspec.Struct, frozen=True):
    """What one process saw lately, and when it last wanted to call (also in vain)."""

    window: TimeWindow
    active_s: float


class Circuit(msgspec.Struct, frozen=True):
    """``version`` counts the changes. ``prober`` may try one call until ``turn_ends_s``; ``passed`` have succeeded."""

    rules: BreakerRules
    status: Status = "closed"
    version: int = 0
    since_s: float = 0.0
    until_s: float = 0.0
    cause: str = ""
    figures: Counts = Counts()
    callers_bad: int = 0
    callers: Mapping[str, Caller] = {}
    prober: str = ""
    turn_began_s: float = 0.0
    turn_ends_s: float = 0.0
    passed: int = 0


def reported(
    circuit: Circuit, caller: str, counts: Counts, *, probe_version: int, now_s: float, chance: float
) -> Circuit:
    """What ``caller`` saw since its last report. ``probe_version``: of the half-open state in which it was the prober
    when it made these calls, or began the one it has under way (then there are no counts); 0 where it was not.
    """
    known = circuit.callers.get(caller) or Caller(TimeWindow(_window_s(circuit.rules)), now_s)
    if circuit.status == "half_open" and probe_version == circuit.version and caller == circuit.prober:
        if counts.calls:
            return _after_probe(circuit, counts, now_s, chance)
        ends_s = min(now_s + TURN_S, circuit.turn_began_s + circuit.rules.probe_timeout_s)  # it is at it
        return msgspec.structs.replace(circuit, callers=_with(circuit, caller, known.window, now_s), turn_ends_s=ends_s)
    window = known.window.merged(counts, now_s) if circuit.status == "closed" and counts.calls else known.window
    circuit = msgspec.structs.replace(circuit, callers=_with(circuit, caller, window, now_s))
    return _judged(circuit, now_s, chance) if circuit.status == "closed" and counts.calls else circuit


def advanced(circuit: Circuit, now_s: float, chance: float) -> Circuit:
    """What time alone changes: open long enough, a prober that has nothing to try, callers that are gone."""
    callers = {name: known for name, known in circuit.callers.items() if now_s - known.active_s < _CALLER_GONE_S}
    if len(callers) != len(circuit.callers):
        circuit = msgspec.structs.replace(circuit, callers=callers)
    if circuit.status == "open" and now_s >= circuit.until_s and callers:
        opened = f"open for {now_s - circuit.since_s:.3g} s"
        return _turned(_changed(circuit, "half_open", opened, circuit.figures, now_s), now_s, chance)
    if circuit.status == "half_open" and now_s >= circuit.turn_ends_s:
        return _turned(circuit, now_s, chance)
    return circuit


def forced(circuit: Circuit, status: Status, reason: str, version: int, now_s: float) -> Circuit:
    """By an operator; ``version`` is the one the log gave it."""
    after = _changed(circuit, status, reason, figures(circuit, now_s), now_s)
    return msgspec.structs.replace(after, version=max(version, after.version))


def resumed(circuit: Circuit, status: Status, version: int, cause: str, open_for_s: float, now_s: float) -> Circuit:
    """As the log, or a caller that knows more, remembers it. Half-open begins again as open that is about to end.
    The version never goes back: who knows a higher one would not listen.
    """
    if status == "half_open":
        status, open_for_s = "open", circuit.rules.open_s
    until_s = now_s + max(0.0, circuit.rules.open_s - open_for_s) if status == "open" else 0.0
    version, since_s = max(version, circuit.version), now_s - open_for_s
    return msgspec.structs.replace(
        circuit, status=status, version=version, cause=cause, since_s=since_s, until_s=until_s
    )


def figures(circuit: Circuit, now_s: float) -> Counts:
    """All callers together."""
    total = Counts()
    for known in circuit.callers.values():
        total = total.plus(known.window.counts(now_s))
    return total


def _with(circuit: Circuit, caller: str, window: TimeWindow, now_s: float) -> Mapping[str, Caller]:
    return {**circuit.callers, caller: Caller(window, now_s)}


def _window_s(rules: BreakerRules) -> float:
    return rules.window.window_s if isinstance(rules.window, TimeWindow) else WINDOW_S


def _judged(circuit: Circuit, now_s: float, chance: float) -> Circuit:
    total, calling, bad = Counts(), 0, 0
    own = msgspec.structs.replace(circuit.rules, calls_min=1)
    for known in circuit.callers.values():
        counts = known.window.counts(now_s)
        if counts.calls:
            total = total.plus(counts)
            calling += 1
            bad += bool(too_bad(own, counts)[0])
    cause, _ = too_bad(circuit.rules, total)
    if not cause or bad * 2 <= calling:
        return circuit
    return _opened(circuit, f"{cause}, seen by {bad} of {calling} callers", total, bad, now_s, chance)


def _after_probe(circuit: Circuit, counts: Counts, now_s: float, chance: float) -> Circuit:
    if counts.failures:
        return _opened(circuit, f"a probe by {circuit.prober} failed", counts, 1, now_s, chance)
    if counts.slow:
        return _opened(circuit, f"a probe by {circuit.prober} was slow", counts, 1, now_s, chance)
    passed = circuit.passed + 1
    if passed >= circuit.rules.probes:
        return _changed(circuit, "closed", f"{passed} of {passed} probes succeeded", Counts(passed), now_s)
    return _turned(msgspec.structs.replace(circuit, passed=passed), now_s, chance)


def _turned(circuit: Circuit, now_s: float, chance: float) -> Circuit:
    """The next one's turn: by chance among those who wanted to call lately, another one than before if there is one."""
    names = sorted(circuit.callers)
    others = [name for name in names if name != circuit.prober] or names
    if not others:
        return msgspec.structs.replace(circuit, prober="", turn_began_s=now_s, turn_ends_s=now_s + TURN_S)
    latest = max(circuit.callers[name].active_s for name in others)
    eager = [name for name in others if latest - circuit.callers[name].active_s < TURN_S]
    prober = eager[min(int(chance * len(eager)), len(eager) - 1)]
    # another version, so that a report of an earlier turn is not taken for one of this
    version = circuit.version + 1
    return msgspec.structs.replace(
        circuit, prober=prober, turn_began_s=now_s, turn_ends_s=now_s + TURN_S, version=version
    )


def _opened(circuit: Circuit, cause: str, counts: Counts, bad: int, now_s: float, chance: float) -> Circuit:
    until_s = now_s + circuit.rules.open_s * (1 + circuit.rules.open_jitter * chance)
    after = _changed(circuit, "open", cause, counts, now_s)
    return msgspec.structs.replace(after, until_s=until_s, callers_bad=bad)


def _changed(circuit: Circuit, status: Status, cause: str, counts: Counts, now_s: float) -> Circuit:
    """Windows begin anew: what was before says nothing about after."""
    callers = {name: Caller(known.window.empty(), known.active_s) for name, known in circuit.callers.items()}
    return msgspec.structs.replace(
        circuit,
        status=status,
        version=circuit.version + 1,
        since_s=now_s,
        until_s=0.0,
        cause=cause,
        figures=counts,
        callers_bad=0,
        callers=callers,
        prober="",
        passed=0,
    )
