"""Failpoints: named places in the code at which a test makes the process crash, stop, raise or wait.

A promise such as "what was acknowledged is in the log" is only as good as the worst moment at which a process can die.
Those moments have names here, and ``tests/faults`` kills real processes at every one of them (the idea is FreeBSD's
fail(9), by way of TiKV and etcd). Off, which is always but in tests, a failpoint costs one look at a module's
variable.

A process is armed with a text, from the setting ``TENANTRY_FAILPOINTS`` or in a test's own words::

    append.before_fcall=crash@3;snap.mid_write=delay:0.2%0.1

At the third append the process kills itself with SIGKILL; of all snapshots one in ten, by a seeded dice, takes 0.2 s
longer. Without ``@`` or ``%`` it happens every time. ``*N`` at the end stops it after N times. Where the place knows
whom it works for, ``claim.after_epoch_before_load[acme]=crash`` is about that tenant alone.

actions: ``crash`` (SIGKILL, no clean-up whatever), ``pause`` (SIGSTOP, until somebody sends SIGCONT), ``raise``
(InjectedError), ``delay:SECONDS`` (blocks the whole process, as a garbage collection or a starved CPU would).
"""

import difflib
import os
import random
import re
import signal
import time
from typing import Literal

import msgspec

from events.errors import PlatformError

# All of them, in the order of a command's way. A test holds this against the code, in both directions.
POINTS = {
    "gw.after_reserve": "the call's maximum is reserved, the model not yet asked",
    "gw.before_settle": "the model has answered, nothing is booked yet",
    "claim.after_epoch_before_load": "older activations are fenced, this one knows nothing yet",
    "activation.after_load_before_subscribe": "the log is replayed, nobody can ask yet",
    "activation.after_subscribe_before_register": "asks arrive, the shard does not yet list the tenant",
    "actor.before_decode": "a command is out of the mailbox and undecided",
    "actor.after_dedupe_read": "known commands' first answers are read, none is sent",
    "append.before_fcall": "decided, nothing is written",
    "append.after_fcall_before_reply": "written and durable, nobody knows it yet",
    "actor.after_append_before_reply": "durable and evolved, no answer is sent",
    "actor.mid_replies": "of a turn's answers the first is sent",
    "snap.before_write": "a snapshot is due and not written",
    "snap.mid_write": "the new snapshot is written, the old ones are not yet dropped",
    "drain.mid": "the subscription is gone, what was accepted is not yet done",
    "drain.before_end": "drained and snapshotted, still registered",
    "proj.before_txn": "a page of events is read, the read model untouched",
    "proj.after_txn": "read model and checkpoint are written, the runner does not know yet",
    "relay.before_ask": "told commands are in hand, their tenant is not yet asked",
    "relay.after_reply_before_record": "the tenant has answered told commands, refusals are not on record",
    "relay.after_record_before_ack": "all outcomes are on record, the queue does not know",
    "relay.mid_acks": "of told commands that are done one is acknowledged",
    "relay.after_burial_before_ack": "a dead letter is written, its command still in the queue",
    "saga.after_intent": "a step's intent is durable, its work in no queue",
    "saga.after_dispatch": "a step's work is in the queue",
    "saga.before_effect": "a runner has a step in hand and has done nothing",
    "saga.after_effect_before_record": "a step has been carried out, its tenant does not know",
    "saga.mid_compensation": "the same, of a step that undoes another",
    "saga.after_record_before_ack": "a step's tenant knows how it ended, the queue does not",
    "supervisor.before_host": "a tenant is asked for, its actor is not yet told",
}

Action = Literal["crash", "pause", "raise", "delay"]
_RULE = re.compile(
    r"(?P<name>[a-z0-9_.]+)(\[(?P<subject>[a-z0-9-]+)\])?=(?P<action>crash|pause|raise|delay:(?P<seconds>[0-9.]+))"
    r"(@(?P<hit>[1-9][0-9]*))?(%(?P<probability>[0-9.]+))?(\*(?P<times>[1-9][0-9]*))?"
)


class FailpointSpecError(PlatformError):
    """The text that should arm failpoints can't be used; the message says what of it, and what could stand there."""

    code = "bad_failpoints"


class InjectedError(PlatformError):
    """What the action ``raise`` raises: an error nobody expects there."""

    code = "injected"


class Rule(msgspec.Struct, frozen=True):
    """``hit`` is the only pass that counts (0: every), ``probability`` a dice thrown at it, ``times`` a limit (0: none).
    ``subject``: the one tenant whose passes count ("": all).
    """

    name: str
    action: Action
    seconds: float = 0.0
    hit: int = 0
    probability: float = 1.0
    times: int = 0
    subject: str = ""


class _Armed:
    """A rule with its counters and its own dice, so that one point's passes don't move another's."""

    def __init__(self, rule: Rule, seed: int) -> None:
        self.rule = rule
        self.passes = self.fired = 0
        self._dice = random.Random(f"{seed} {rule.name}")  # noqa: S311 - it must be repeatable, not secret

    def is_due(self) -> bool:
        self.passes += 1
        rule = self.rule
        if rule.times and self.fired >= rule.times:
            return False
        if rule.hit and self.passes != rule.hit:
            return False
        return rule.probability >= 1.0 or self._dice.random() < rule.probability


_armed: dict[str, _Armed] = {}


def failpoint(name: str, subject: str = "") -> None:
    """The place called ``name``, at work for the tenant ``subject``. Does nothing unless a test has armed it in this process."""
    if _armed:
        _reach(name, subject)


def arm(text: str, seed: int = 0) -> None:
    """Replace this process's rules by those of ``text`` ("" disarms).

    Raises:
        FailpointSpecError: It is malformed, or names a point that does not exist.
    """
    rules = parse(text)
    _armed.clear()
    _armed.update({rule.name: _Armed(rule, seed) for rule in rules})


def passes() -> dict[str, int]:
    """How often each armed point was passed: a test counts only if the place was reached at all."""
    return {name: armed.passes for name, armed in _armed.items()}


def parse(text: str) -> list[Rule]:
    """Raises FailpointSpecError."""
    rules = [_parse_rule(part.strip()) for part in text.split(";") if part.strip()]
    names = [rule.name for rule in rules]
    if twice := {name for name in names if names.count(name) > 1}:
        raise FailpointSpecError(f"each failpoint may have one rule; these have more: {', '.join(sorted(twice))}")
    return rules


def _parse_rule(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if match is None:
        raise FailpointSpecError(
            "expected NAME=crash|pause|raise|delay:SECONDS, where wanted NAME[TENANT]=…, then @HIT, %PROBABILITY or *TIMES, "
            f"got {text!r}"
        )
    name, probability = match["name"], _number(match["probability"] or "1", text)
    if name not in POINTS:
        close = difflib.get_close_matches(name, POINTS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(POINTS)}"
        raise FailpointSpecError(f"unknown failpoint {name!r}, {hint}")
    if not 0 < probability <= 1:
        raise FailpointSpecError(f"a probability is above 0 and at most 1, got {text!r}")
    return Rule(
        name=name,
        action=match["action"].split(":")[0],  # type: ignore[arg-type]  # the pattern allows no other
        seconds=_number(match["seconds"] or "0", text),
        hit=int(match["hit"] or 0),
        probability=probability,
        times=int(match["times"] or 0),
        subject=match["subject"] or "",
    )


def _number(digits: str, text: str) -> float:
    try:
        return float(digits)
    except ValueError as error:
        raise FailpointSpecError(f"{digits!r} is not a number, in {text!r}") from error


def _reach(name: str, subject: str) -> None:
    assert name in POINTS, name
    armed = _armed.get(name)
    if armed is None or armed.rule.subject not in ("", subject) or not armed.is_due():
        return
    armed.fired += 1
    rule = armed.rule
    # straight to the file descriptor: after SIGKILL no buffer is flushed, and a fault without a trace proves nothing
    os.write(2, f"failpoint.fired name={name} action={rule.action} pass={armed.passes} pid={os.getpid()}\n".encode())
    match rule.action:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "pause":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise InjectedError(name)
        case "delay":
            time.sleep(rule.seconds)  # the fault itself: this process stands still for so long, its loop included
