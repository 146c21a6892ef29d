"""What callers and the supervisors of bulkheads and breakers say to each other, over core NATS: MessagePack.

Anything may get lost. So callers repeat what they have (leases every second, the version they know with every report), and
supervisors repeat what is not normal; the log alone remembers.
"""

from typing import Any

import msgspec

from actors.policies.breaker import BreakerRules, Status
from actors.policies.window import Counts

LEASE = "supervisor.bulkheads.lease"  # request/reply
BULKHEADS_SHOW = "supervisor.bulkheads.show"  # request/reply
REPORT = "supervisor.breakers.report"
HELLO = "supervisor.breakers.hello"  # from the supervisor: who are you all?
STATE = "supervisor.breakers.state"  # to all callers
FORCE = "supervisor.breakers.force"  # request/reply
BREAKERS_SHOW = "supervisor.breakers.show"  # request/reply

Key = tuple[str, str]  # dependency, tenant ("": all tenants share it)


class LeaseItem(msgspec.Struct, frozen=True, array_like=True):
    """``held``: the caller surely uses no more. ``wanted``: it would use so many. ``limit`` is the whole cluster's."""

    name: str
    tenant: str
    limit: int
    drain_s: float
    held: int
    wanted: int


class LeaseAsk(msgspec.Struct, frozen=True, array_like=True):
    caller: str
    items: list[LeaseItem]


class LeaseAnswer(msgspec.Struct, frozen=True, array_like=True):
    """``granted`` in the order of the items."""

    granted: list[int]


class LocalChange(msgspec.Struct, frozen=True, array_like=True):
    """A caller's own breaker has changed by itself."""

    before: Status
    after: Status
    cause: str
    figures: Counts


class ReportItem(msgspec.Struct, frozen=True, array_like=True):
    """``incarnation`` and ``version``: the state the caller knows, which began ``age_s`` ago. ``rules`` come with the first
    report and after a hello. ``probe_version``: see ``circuit.reported``.
    """

    name: str
    tenant: str
    counts: Counts
    refused: int
    probe_version: int
    incarnation: int
    status: Status
    version: int
    age_s: float
    cause: str
    rules: BreakerRules | None
    local: list[LocalChange]


class Report(msgspec.Struct, frozen=True, array_like=True):
    caller: str
    items: list[ReportItem]


class State(msgspec.Struct, frozen=True, array_like=True):
    """A breaker as the cluster has it. ``wait_s``: until it may be probed. ``prober``: the one caller that may."""

    incarnation: int
    name: str
    tenant: str
    status: Status
    version: int
    wait_s: float
    cause: str
    prober: str


class Force(msgspec.Struct, frozen=True, array_like=True):
    """An operator's command that is in the log already, as ``version``."""

    name: str
    tenant: str
    status: Status
    reason: str
    version: int


def encode(message: object) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(data: bytes, kind: Any) -> Any:
    return msgspec.msgpack.decode(data, type=kind)
