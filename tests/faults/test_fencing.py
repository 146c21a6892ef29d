"""Two owners at once, in real processes: one is stopped, overtaken, and wakes up."""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.ownership import OWNERSHIP_TRUSTED_S
from actors.shard import Shard
from events.ask import Asker
from events.bus import ACTIVATE, Bus
from events.clock import SystemClock
from events.codec import GENESIS
from events.errors import FencedError
from events.keys import Keys
from events.tenant import DescribeTenant
from events.valkey_store import ValkeyEventStore
from events.verify import verify
from tests.faults.clients import Client
from tests.faults.sweep import log_of
from tests.faults.worker import Plan, Worker
from tests.kit.checker import check
from tests.kit.factories import append_request
from tests.kit.history import Recorder
from tests.kit.servers import Servers, keys_in_memory
from tests.kit.waiting import handed_out

LETS_GO_WITHIN_S, _MARGIN_S = 5.0, 5.0
CLAIMERS = 20


@pytest.fixture
async def bus(servers: Servers) -> AsyncIterator[Bus]:
    connection = await Bus.connect(servers.nats_url, "fencing", lambda: None)
    yield connection
    await connection.close()


@pytest.fixture
def keys() -> Keys:
    return keys_in_memory()


def tenant_id() -> str:
    return f"z{uuid.uuid4().hex[:10]}"


def plan(servers: Servers, directory: Path, bug: str = "") -> Plan:
    return Plan(
        name="zombie",
        role="shard",
        nats_url=servers.nats_url,
        valkey_url=servers.valkey_url,
        vault_url=servers.vault_url,
        directory=str(directory),
        bug=bug,
        passivates=False,
    )


async def fenced(worker: Worker) -> float:
    """Seconds until the worker says that it lost its tenant."""
    began = time.monotonic()
    async with asyncio.timeout(LETS_GO_WITHIN_S + _MARGIN_S):
        while "tenant.fenced" not in worker.output:  # noqa: ASYNC110 - another process tells by what it prints
            await asyncio.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "idle"])
async def test_a_stopped_owner_that_was_overtaken_lets_go_within_5_s_of_waking_up(
    servers: Servers, tmp_path: Path, valkey_store: ValkeyEventStore, bus: Bus, asked: bool
) -> None:
    """With a command in its hands, which the store refuses; and where nobody asks it for anything."""
    worker, tenant, asker = Worker(plan(servers, tmp_path)), tenant_id(), Asker(bus, attempt_timeout_s=0.5)
    recorder = Recorder()
    client = Client(0, tenant, asker, recorder, 1)
    try:
        await worker.wait_ready()
        await client.set_up()
        os.kill(worker.pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while not worker.is_stopped:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.01)
        newer = await valkey_store.claim(tenant)
        if asked:  # it lies in the stopped process's socket, and is decided when it wakes up
            sent = await handed_out(bus, tenant, client._reserve(2.0))
        worker.resume()
        assert await fenced(worker) < LETS_GO_WITHIN_S + _MARGIN_S
        if asked:
            await sent
    finally:
        await worker.stop()
    head = await valkey_store.head(tenant)
    assert head is not None
    assert head.epoch >= newer.epoch
    await verify(valkey_store, tenant)


async def test_twenty_claimers_leave_one_writer(valkey_store: ValkeyEventStore) -> None:
    """Whoever was given the highest epoch writes, and nobody else."""
    tenant = tenant_id()
    heads = await asyncio.gather(*(valkey_store.claim(tenant) for _ in range(CLAIMERS)))
    assert sorted(head.epoch for head in heads) == list(range(1, CLAIMERS + 1))
    outcomes = await asyncio.gather(
        *(valkey_store.append(append_request(tenant, epoch=head.epoch, previous=GENESIS)) for head in heads),
        return_exceptions=True,
    )
    wrote = [head.epoch for head, outcome in zip(heads, outcomes, strict=True) if not isinstance(outcome, Exception)]
    assert wrote == [CLAIMERS]
    assert sum(isinstance(outcome, FencedError) for outcome in outcomes) == CLAIMERS - 1


@pytest.mark.parametrize("bug", ["", "no-ownership-check"])
async def test_an_overtaken_owner_answers_no_read_from_memory(
    servers: Servers, tmp_path: Path, bus: Bus, valkey_store: ValkeyEventStore, keys: Keys, bug: str
) -> None:
    """I8: and where it does, the checker finds it. The newer owner writes without being subscribed, so that only the
    older one is there to answer.
    """
    worker, tenant, recorder = Worker(plan(servers, tmp_path, bug)), tenant_id(), Recorder()
    asker = Asker(bus, attempt_timeout_s=0.5)
    client = Client(0, tenant, asker, recorder, 1)
    try:
        await worker.wait_ready()
        await client.set_up()
        await bus.request(ACTIVATE, tenant.encode(), 10.0)
        await asyncio.sleep(OWNERSHIP_TRUSTED_S)  # for so long an owner trusts its last proof (README, Decisions)
        head = await valkey_store.claim(tenant)
        request = append_request(tenant, epoch=head.epoch, position=head.position, previous=head.hash)
        operation = recorder.invoke("newer", tenant, "Written", request.entries[0].hash.hex(), "", writes=False)
        await valkey_store.append(request)
        recorder.end(operation, "ok", position=head.position + 1)
        await client._send(DescribeTenant(), "read", 10.0)
    finally:
        await worker.stop()
    recorder.add(*await log_of(valkey_store, tenant))
    stale = [violation for violation in check(recorder.lines) if "had been answered before" in violation.message]
    assert bool(stale) == bool(bug)


async def test_an_idle_shard_keeps_what_is_its_own(
    bus: Bus, valkey_store: ValkeyEventStore, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat proves ownership; it takes nothing from an owner that was not overtaken."""
    monkeypatch.setattr("actors.heartbeat.PERIOD_S", 0.05)
    shard, tenant = Shard("idle", "pool", valkey_store, bus, SystemClock(), keys), tenant_id()
    await shard.host(tenant)
    activation = shard._active[tenant].activation
    before = activation._ownership.proven_at
    async with asyncio.timeout(60):
        while activation._ownership.proven_at == before:  # noqa: ASYNC110 - it does not tell
            await asyncio.sleep(0.02)
    assert shard.tenants == [tenant]
    await shard.close()
