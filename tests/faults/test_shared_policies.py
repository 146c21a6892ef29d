"""Bulkheads and breakers that processes share, with real ones being killed: 500 callers on three of them.

What the dependency itself counts decides. ``TENANTRY_SHARED_ROUNDS`` (1) repeats the kills.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from actors.policies.retry import RetryRules
from actors.shard import Shard
from actors.supervision.messages import BREAKERS_SHOW, BULKHEADS_SHOW, decode
from events.bus import Bus, NoOneListensError
from events.clock import SystemClock
from events.codec import decode_event, decode_record
from events.keys import Keys, parse_master_keys
from events.slices import SYSTEM_TENANT
from events.system import BreakerChanged, breaker_stream
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.valkey_vault import ValkeyVault
from tests.faults.callers import Figures, Plan
from tests.kit.activator import activating
from tests.kit.dependency import Dependency, running_dependency
from tests.kit.servers import MASTER_KEY, Servers, running_servers

ROUNDS = int(os.environ.get("TENANTRY_SHARED_ROUNDS", "1"))
CALLERS, PROCESSES = 501, 3
WAIT_S = 60.0
BREAKER = {"calls_min": 50, "window_s": 5, "open_s": 1.0, "probes": 3}


class Child:
    """A process, and the newest figures it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines = 0
        self.figures: dict[str, Figures] = {}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines += 1
            if line.startswith(b"{"):
                self.figures = msgspec.json.decode(line, type=dict[str, Figures])

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading

    def done(self, name: str) -> int:
        return self.figures[name].done if name in self.figures else 0


class World:
    def __init__(self, servers: Servers, bus: Bus, store: ValkeyEventStore, dependency: Dependency) -> None:
        self.servers, self.bus, self.store, self.dependency = servers, bus, store, dependency
        self.children: list[Child] = []

    async def _start(self, *arguments: str) -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.callers", *arguments, stdout=asyncio.subprocess.PIPE
        )
        child = Child(process)
        self.children.append(child)
        return child

    async def supervisors(self, *, first: bool) -> Child:
        child = await self._start("supervisors", self.servers.nats_url, "first" if first else "again")
        await until(lambda: child.lines > 0)
        return child

    async def caller(
        self,
        dependencies: dict[str, tuple[dict[str, Any], str]],
        tasks: int = 10,
        *,
        url: str = "",
        think_s: float = 0.25,
    ) -> Child:
        plan = Plan(
            {
                name: (url or self.dependency.url(name), policies, tenant)
                for name, (policies, tenant) in dependencies.items()
            },
            tasks,
            think_s,
        )
        return await self._start("caller", self.servers.nats_url, json.dumps(msgspec.to_builtins(plan)))

    async def show(self, subject: str, name: str) -> dict[str, Any]:
        """The supervisor's row; {} where it is away or knows nothing of it."""
        try:
            rows = decode(await self.bus.request(subject, b"", 2.0), list[dict[str, Any]])
        except (NoOneListensError, TimeoutError):
            return {}
        return next((row for row in rows if row["name"] == name), {})

    async def history(self, name: str, tenant: str = "") -> list[BreakerChanged]:
        stored = await self.store.read_stream(SYSTEM_TENANT, breaker_stream(name, tenant), 0)
        events = [decode_event(decode_record(event.record).data) for event in stored]
        return [event for event in events if isinstance(event, BreakerChanged) and not event.caller]


async def until(holds: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
    """Other processes can only be looked at."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = holds()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Not the ones that other tests use: NATS is killed here."""
    with running_servers(tmp_path_factory.mktemp("shared")) as running:
        yield running


@asynccontextmanager
async def connected(servers: Servers) -> AsyncIterator[tuple[Bus, ValkeyEventStore]]:
    bus = await Bus.connect(servers.nats_url, "test", lambda: None)
    store = ValkeyEventStore(connect(servers.valkey_url))
    await store.open()
    vault = ValkeyVault(connect(servers.vault_url))
    await vault.open()
    shard = Shard("system", "pool", store, bus, SystemClock(), Keys(vault, parse_master_keys(MASTER_KEY)))
    async with activating(bus, shard):
        yield bus, store
        await shard.close()
    await bus.close()
    await store.close()
    await vault.close()


@pytest.fixture
async def world(own_servers: Servers) -> AsyncIterator[World]:
    async with connected(own_servers) as (bus, store), running_dependency() as dependency:
        running = World(own_servers, bus, store, dependency)
        yield running
        await asyncio.gather(*(child.kill() for child in running.children))


async def test_the_limit_holds_at_the_dependency_whoever_is_killed(world: World) -> None:
    """12 permits for 501 callers on three processes; callers, the supervisors and NATS are killed."""
    name, policies = "mail", {"bulkhead": {"permits": 12}, "timeout_s": 1}
    counted = world.dependency.count(name)
    counted.service_s = 0.05
    plan = {name: (policies, "")}
    supervisors = await world.supervisors(first=True)
    callers = [await world.caller(plan, CALLERS // PROCESSES) for _ in range(PROCESSES)]
    await until(lambda: all(caller.done(name) > 3 for caller in callers))
    assert counted.most <= 12
    assert (await world.show(BULKHEADS_SHOW, name))["state"] == "saturated"
    for _ in range(ROUNDS):
        await callers.pop(0).kill()
        callers.append(await world.caller(plan, CALLERS // PROCESSES))
        await until(lambda: callers[-1].done(name) > 3)
        await supervisors.kill()
        before = sum(caller.done(name) for caller in callers)
        await until(lambda then=before: sum(caller.done(name) for caller in callers) > then + 150)  # type: ignore[misc]
        await callers.pop(0).kill()
        supervisors = await world.supervisors(first=False)
        callers.append(await world.caller(plan, CALLERS // PROCESSES))
        await until(lambda: callers[-1].done(name) > 3)
        os.kill(world.servers.nats.pid, signal.SIGKILL)
        dones = [caller.done(name) for caller in callers]
        await until(lambda then=dones: all(c.done(name) > n + 5 for c, n in zip(callers, then, strict=True)))  # type: ignore[misc]
    assert counted.most == 12, "all of them were used, and never one more"
    stopped = callers.pop()
    stopped.process.terminate()
    await stopped.process.wait()
    assert stopped.process.returncode == 0


async def probes_come_one_at_a_time(world: World, name: str) -> None:
    """While it goes on failing, each time it is half-open costs the dependency one call, of all callers together."""
    counted = world.dependency.count(name)
    await until(lambda: counted.under_way == 0)
    calls, begun = counted.calls, await times_half_open(world, name)

    async def was_half_open_again() -> bool:
        return await times_half_open(world, name) >= begun + 3

    await until(was_half_open_again)
    calls = counted.calls - calls
    assert 2 <= calls <= await times_half_open(world, name) - begun + 1


async def times_half_open(world: World, name: str) -> int:
    return sum(event.after == "half_open" for event in await world.history(name))


async def test_every_way_to_fail_opens_the_breaker_for_all_and_recovery_closes_it(world: World) -> None:
    """500 callers on three processes. Errors, time-outs, slow success, garbage and flapping open it; probes come one
    at a time; and the log says why.
    """
    ways = ("errors", "hangs", "slow", "garbage", "flaps")
    policies = {"breaker": BREAKER, "timeout_s": 2}
    plan: dict[str, tuple[dict[str, Any], str]] = dict.fromkeys(ways, (policies, ""))
    plan["slow"] = ({**policies, "breaker": {**BREAKER, "slow_after_s": 1.0}, "timeout_s": 10}, "")
    tasks = CALLERS // PROCESSES // len(plan)
    await world.supervisors(first=True)
    callers = [await world.caller(plan, tasks) for _ in range(PROCESSES)]
    await until(lambda: all(caller.done(way) > 3 for caller in callers for way in plan))
    for way in ways:
        world.dependency.count(way).mood = way  # type: ignore[assignment]
    await until(lambda: all(caller.figures[way].refused.get("breaker") for caller in callers for way in ways))
    for way in ways:
        history = await world.history(way)
        assert history[0].after == "open"
        assert history[0].callers_bad * 2 > PROCESSES
        assert history[0].calls >= 50
    await probes_come_one_at_a_time(world, "errors")
    counted = {way: world.dependency.count(way) for way in ways}
    await until(lambda: all(count.under_way == 0 for way, count in counted.items() if way != "hangs"))
    for count in counted.values():
        count.mood, count.most = "well", count.under_way
    asked = {way: count.calls for way, count in counted.items()}
    await until(lambda: all(caller.figures[way].breaker == "closed" for caller in callers for way in ways))
    for way in ways:
        afters = [event.after for event in await world.history(way)]
        assert afters[-1] == "closed"
        assert "half_open" in afters
        assert counted[way].calls > asked[way]


async def test_one_bad_node_opens_nothing_for_others_and_one_tenant_nothing_for_another(world: World) -> None:
    policies = {"breaker": {**BREAKER, "open_s": 60}, "timeout_s": 1}
    own = {**policies, "scope": "tenant"}
    world.dependency.count("ledger").service_s = 0.001
    await world.supervisors(first=True)
    good = [await world.caller({"ledger": (policies, ""), "hook": (own, "globex")}, 5) for _ in range(2)]
    # its network is broken: whatever it calls, nobody is there
    bad = await world.caller({"ledger": (policies, ""), "hook": (own, "acme")}, 20, url="http://127.0.0.1:9/")
    await until(lambda: bad.figures and bad.figures["ledger"].refused.get("breaker"))
    await until(lambda: bad.figures["hook"].refused.get("breaker"))
    before = [caller.done("ledger") for caller in good]
    await until(lambda: all(c.done("ledger") > n + 40 for c, n in zip(good, before, strict=True)))
    row = await world.show(BREAKERS_SHOW, "ledger")
    assert (row["state"], row["callers_open"]) == ("closed", 1)
    assert all("breaker" not in caller.figures[name].refused for caller in good for name in ("ledger", "hook"))
    await until(lambda: opened(world, "hook", "acme"))
    assert not await world.history("hook", "globex")


async def opened(world: World, name: str, tenant: str = "") -> bool:
    return any(event.after == "open" for event in await world.history(name, tenant))


async def test_without_the_supervisor_each_process_breaks_for_itself_and_its_successor_knows_what_was(
    world: World,
) -> None:
    policies = {"breaker": {**BREAKER, "open_s": 60}, "timeout_s": 1}
    counted = world.dependency.count("books")
    supervisors = await world.supervisors(first=True)
    callers = [await world.caller({"books": (policies, ""), "other": (policies, "")}, 20) for _ in range(PROCESSES)]
    await until(lambda: all(caller.done("books") > 5 for caller in callers))
    counted.mood = "errors"
    await until(lambda: opened(world, "books"))
    await supervisors.kill()
    world.dependency.count("other").mood = "errors"
    await until(lambda: all(caller.figures["other"].refused.get("breaker") for caller in callers))
    await world.supervisors(first=False)
    await until(lambda: is_in_state(world, "books", "open"))
    assert (await world.show(BREAKERS_SHOW, "books"))["version"] >= (await world.history("books"))[-1].version


async def is_in_state(world: World, name: str, state: str) -> bool:
    return bool((await world.show(BREAKERS_SHOW, name)).get("state") == state)


async def test_a_retry_storm_stays_within_its_budget(world: World) -> None:
    """Two of three calls fail and everybody would try four times: the dependency sees at most a tenth more."""
    world.dependency.count("storm").mood = "flaps"
    world.dependency.count("storm").service_s = 0.001
    policies = {"retry": {"attempts_max": 4, "first_s": 0.001}, "timeout_s": 5}
    callers = [await world.caller({"storm": (policies, "")}, 100, think_s=0.05) for _ in range(PROCESSES)]
    await until(lambda: all(caller.done("storm") > 300 for caller in callers))
    for caller in callers:
        caller.process.send_signal(signal.SIGSTOP)
    counted = world.dependency.count("storm")
    await until(lambda: counted.under_way == 0)
    ended = sum(caller.figures["storm"].done + caller.figures["storm"].failed for caller in callers)
    started = ended + 100 * PROCESSES  # what was under way, at most; a call has one attempt that is no retry
    assert counted.calls <= started * 1.1
    retries = [caller.figures["storm"].retries for caller in callers]
    assert min(retries) > RetryRules().budget_reserve, "calls paid for more than the reserve, which is a loan"
