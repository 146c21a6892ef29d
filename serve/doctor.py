"""Examine a running deployment. Each finding is ok, or says what to do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version

import ray
from ray.exceptions import RayError

from actors.supervision.root import ROOT_NAME
from events.bus import ACTIVATE, NoOneListensError
from events.errors import PlatformError
from events.inbox import slices_of
from events.process import NAMESPACE
from events.slices import SLICE_COUNT
from projections.actor import PROJECTIONS
from projections.runs import STUCK, RunsProjection
from serve.run_list import stuck_steps
from serve.services import Services

_LAG_EVENTS_MAX = 1_000
_PARTS = ("tenantry", "ray", "nats-py", "redis", "msgspec", "pydantic")

Examination = Callable[[Services], Awaitable[tuple[bool, str]]]


async def _versions(_services: Services) -> tuple[bool, str]:
    return True, ", ".join(f"{part} {version(part)}" for part in _PARTS)


async def _valkey(services: Services) -> tuple[bool, str]:
    info = await services.store.server_info()
    wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    wrong = {name: info[name] for name, value in wanted.items() if info[name] != value}
    if wrong:
        return False, f"{wrong}: an acknowledged command can get lost; set {wanted} in valkey.conf"
    return True, f"Valkey {info['version']}, every acknowledged command is on disk (appendfsync always)"


async def _nats(services: Services) -> tuple[bool, str]:
    if not services.bus.is_connected:
        return False, "not connected: start nats-server, or correct TENANTRY_NATS_URL"
    try:
        await services.bus.request(ACTIVATE, b"", 2.0)  # no tenant has the empty id, so this activates nothing
    except NoOneListensError:
        return False, "connected, but no root supervisor listens: Ray restarts it; look at its log if it stays away"
    except TimeoutError:
        return False, "connected, but the root supervisor does not answer"
    return True, "connected, the root supervisor answers"


async def _ray(_services: Services) -> tuple[bool, str]:
    nodes = await asyncio.to_thread(ray.nodes)
    alive = sum(node["Alive"] for node in nodes)
    try:
        await asyncio.to_thread(ray.get_actor, ROOT_NAME, NAMESPACE)
    except ValueError:
        return False, f"{alive} nodes alive, but there is no root supervisor: start the platform again"
    return alive > 0, f"Ray {ray.__version__}, {alive} of {len(nodes)} nodes alive"


async def _lag(services: Services) -> tuple[bool, str]:
    behind = 0
    for projection in PROJECTIONS:
        for number in range(SLICE_COUNT):
            checkpoints = await services.models.checkpoints(projection, number)
            for tenant in await services.store.tenants(number):
                head = await services.store.head(tenant)
                behind += max(0, (head.position if head else 0) - checkpoints.get(tenant, 0))
    if behind > _LAG_EVENTS_MAX:
        return False, f"read models are {behind} events behind: look at the log of the actor `projections`"
    return True, f"read models are {behind} events behind"


async def _queues(services: Services) -> tuple[bool, str]:
    served = {number for info in await services.inbox.consumers_of(range(SLICE_COUNT)) for number in slices_of(info)}
    waiting, dead = await services.inbox.counts()
    queued = f"{waiting} commands are queued, {dead} are dead letters (`tenantry dlq list`)"
    if len(served) < SLICE_COUNT:
        missing = SLICE_COUNT - len(served)
        return (
            False,
            f"{queued}; nobody relays {missing} of {SLICE_COUNT} slices: look at the log of the actors inbox-relay-*",
        )
    return True, queued


async def _compensations(services: Services) -> tuple[bool, str]:
    found: list[str] = []
    for number in range(SLICE_COUNT):
        for tenant in await services.store.tenants(number):
            if await services.models.count(RunsProjection(), tenant, STUCK):
                found += [f"{tenant} {member}" for member in await stuck_steps(services, tenant)]
    if found:
        return False, (
            f"{len(found)} steps of runs could not be undone, each (tenant run#step) needs a person: {', '.join(found[:20])}; "
            "mend what they call, then `tenantry runs retry TENANT RUN`"
        )
    return True, "no compensation is stuck"


async def _logs(services: Services) -> tuple[bool, str]:
    lost, halted = [], []
    witnessed = await services.vault.all_witnessed()
    for tenant, seen in witnessed.items():
        head = await services.store.head(tenant)
        found = head.position if head else 0
        if found < seen.position:
            lost.append(f"{tenant} ({seen.position} acknowledged, {found} there)")
        elif head is not None and head.status == "halted":
            halted.append(f"{tenant} ({head.halted_because or 'no reason was kept'})")
    findings = []
    if lost:
        findings.append(
            f"LOG REWOUND, these tenants are or will be halted: {', '.join(lost[:20])}; `tenantry verify` says more"
        )
    if halted:
        findings.append(
            f"halted, nothing is served of these tenants: {', '.join(halted[:20])}; mend that, then `tenantry tenant "
            "resume TENANT`, which verifies the log first"
        )
    if findings:
        return False, "; ".join(findings)
    return True, f"{len(witnessed)} logs hold all that was acknowledged"


async def _vault(services: Services) -> tuple[bool, str]:
    unreadable = await services.keys.unreadable()
    if unreadable:
        return False, f"no master key at hand opens the keys of {', '.join(unreadable[:20])}: set TENANTRY_MASTER_KEY"
    return True, "every tenant's key can be opened"


async def _models(services: Services) -> tuple[bool, str]:
    names = [model.name for model in services.settings.models.models]
    if not names:
        return False, "no models: give `tenantry up --models FILE`, or set TENANTRY_UPSTREAM_URL"
    return True, ", ".join(names)


EXAMINATIONS: dict[str, Examination] = {
    "versions": _versions,
    "event store": _valkey,
    "logs": _logs,
    "vault": _vault,
    "bus": _nats,
    "ray": _ray,
    "read models": _lag,
    "queues": _queues,
    "compensations": _compensations,
    "models": _models,
}


async def examine(services: Services) -> AsyncIterator[tuple[str, bool, str]]:
    """Yields (what, is it ok, detail or what to do)."""
    for name, examination in EXAMINATIONS.items():
        try:
            ok, detail = await examination(services)
        except (PlatformError, RayError) as error:
            ok, detail = False, str(error)
        yield name, ok, detail
