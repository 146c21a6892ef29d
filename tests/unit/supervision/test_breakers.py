"""The breakers' supervisor and the callers it tells, with a clock in hand and a bus that delivers at once."""

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from actors.policies.breaker import BreakerRules
from actors.supervision.breakers import BreakerSupervisor
from actors.supervision.clients import BreakerLink
from actors.supervision.journal import Journal
from actors.supervision.messages import FORCE, HELLO, REPORT, STATE, Force, Key, Report, State, decode, encode
from events.ask import Asker
from events.bus import Bus
from events.errors import BusUnavailableError
from tests.kit.clock import ManualMonotonic

KEY: Key = ("mail", "")
RULES = BreakerRules(calls_min=5, open_s=1.0, open_jitter=0.0, probes=1)


class NoLog:
    """The system tenant is out of reach, and the journal writes into the air."""

    async def ask(self, *_: object, **__: object) -> None:
        raise BusUnavailableError("no log here")

    def write(self, *_: object) -> None: ...


class Cluster:
    """A supervisor and two callers of one dependency; callers report when told to."""

    def __init__(self) -> None:
        self.clock = ManualMonotonic()
        self.handlers: dict[str, Callable[[bytes, str], None]] = {}
        self.links = {
            name: BreakerLink(KEY, RULES, lambda: None, self.clock, lambda: 0.0) for name in ("first", "second")
        }
        log = NoLog()
        self.supervisor = BreakerSupervisor(
            cast("Bus", self), cast("Asker", log), cast("Journal", log), 1, clock=self.clock, chance=lambda: 0.0
        )

    async def subscribe(self, subject: str, handler: Any) -> Any:
        self.handlers[subject] = handler
        return self

    async def unsubscribe(self) -> None: ...

    def publish(self, subject: str, data: bytes) -> None:
        for name, link in self.links.items():
            if subject == STATE:
                link.hear(decode(data, State), name)
            elif subject == HELLO:
                link.introduced = False

    def report(self) -> None:
        """Twice: a hello is answered, too."""
        for _ in range(2):
            for name, link in self.links.items():
                if (item := link.report()) is not None:
                    self.handlers[REPORT](encode(Report(name, [item])), "")

    def call(self, name: str, *, failed: bool, times: int = 1) -> None:
        breaker = self.links[name].breaker
        for _ in range(times):
            breaker.record(breaker.permit(), failed=failed, duration_s=0.1)
        self.report()

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.supervisor.advance(self.clock(), repeat=True)

    def outage(self, name: str) -> None:
        """``name`` alone notices, and all are told."""
        for _ in range(RULES.calls_min):
            self.links[name].on_outcome(failed=True, slow=False)
        self.report()

    @property
    def statuses(self) -> list[str]:
        """The supervisor's, then the callers'."""
        own = [row["state"] for row in self.supervisor.rows()]
        return own + [link.breaker.state.status for link in self.links.values()]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    await made.supervisor.start()
    made.wait(1.0)
    made.report()
    yield made
    await made.supervisor.close()


def recovered(cluster: Cluster) -> None:
    """After an outage that took several versions."""
    cluster.outage("first")
    cluster.wait(1.0)
    prober = next(name for name, link in cluster.links.items() if link.breaker.state.status == "half_open")
    cluster.call(prober, failed=False)
    assert cluster.statuses == ["closed"] * 3


async def test_an_outage_after_a_quiet_while_is_heard_by_who_knew_the_one_before(cluster: Cluster) -> None:
    recovered(cluster)
    cluster.wait(31.0)
    assert cluster.supervisor.rows() == [], "nobody called for so long that it was forgotten"
    cluster.call("second", failed=False)
    cluster.outage("second")
    assert cluster.statuses == ["open"] * 3


async def test_an_operators_word_on_a_forgotten_breaker_is_heard_whatever_the_log_counted(cluster: Cluster) -> None:
    """The log counts the changes it was told of; callers also know turns of probing, and versions it never saw."""
    recovered(cluster)
    cluster.wait(31.0)
    cluster.handlers[FORCE](encode(Force(*KEY, "forced_open", "closed for works", 1)), "reply")
    cluster.call("first", failed=False)
    assert cluster.statuses == ["forced_open"] * 3
