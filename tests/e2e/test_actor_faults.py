"""Real TenantActors of a real Ray: stopped and overtaken, killed under load."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from events.ask import Asker
from events.bus import ACTIVATE, Bus, NoOneListensError, ask_subject
from events.codec import decode_record
from events.tenant import SetBudget
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.verify import verify
from tests.faults.clients import Client
from tests.faults.sweep import log_of
from tests.kit.checker import check
from tests.kit.history import Recorder
from tests.kit.platform import UpProcess
from tests.kit.waiting import handed_out

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

LETS_GO_WITHIN_S, _MARGIN_S = 5.0, 5.0


@pytest.fixture
async def bus(platform: UpProcess) -> AsyncIterator[Bus]:
    connection = await Bus.connect(platform.running.nats_url, "faults", lambda: None)
    yield connection
    await connection.close()


@pytest.fixture
async def store(platform: UpProcess) -> AsyncIterator[ValkeyEventStore]:
    opened = ValkeyEventStore(connect(platform.running.valkey_url))
    await opened.open()
    yield opened
    await opened.close()


def actor_of_new_tenant(platform: UpProcess, tenant: str) -> int:
    """A tenant with an actor of its own; returns that actor's process id."""
    before = set(platform.pids_of("ray::TenantActor"))
    with platform.admin() as admin:
        assert admin.post("/tenants", json={"id": tenant, "name": "Test", "plan": "pro"}).status_code == 201
        ends = time.monotonic() + 60
        while not (new := set(platform.pids_of("ray::TenantActor")) - before):
            assert time.monotonic() < ends
            admin.get(f"/tenants/{tenant}")  # whoever asks for it has it activated there
    (pid,) = new
    return pid


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "idle"])
async def test_a_stopped_tenant_actor_that_was_overtaken_lets_go_within_5_s_of_waking_up(
    platform: UpProcess, bus: Bus, store: ValkeyEventStore, asked: bool
) -> None:
    """Once overtaken it writes nothing more, and stops listening; then whoever asks has the tenant activated anew."""
    tenant = "z3-asked" if asked else "z3-idle"
    pid = await asyncio.to_thread(actor_of_new_tenant, platform, tenant)
    asker = Asker(bus)
    await asker.ask(tenant, SetBudget(1, "total"), actor="test")
    os.kill(pid, signal.SIGSTOP)
    try:
        newer = await store.claim(tenant)
        before = await store.head(tenant)
        if asked:
            bus.publish(ask_subject(tenant), b"")
            ask = asker.ask(tenant, SetBudget(2, "total"), actor="test", timeout_s=30.0)
            pending = await handed_out(bus, tenant, ask)
    finally:
        os.kill(pid, signal.SIGCONT)
    began = time.monotonic()
    if asked:
        await pending  # answered by the next activation, under a newer epoch
    else:
        async with asyncio.timeout(LETS_GO_WITHIN_S + _MARGIN_S):
            while await is_held(bus, store, tenant, newer.epoch):  # noqa: ASYNC110 - as beside the sleep
                await asyncio.sleep(0.1)  # that nobody is subscribed any more NATS says only to who asks
    assert time.monotonic() - began < LETS_GO_WITHIN_S + _MARGIN_S
    await asker.ask(tenant, SetBudget(3, "total"), actor="test")
    head = await store.head(tenant)
    assert before is not None
    assert head is not None
    assert head.epoch > newer.epoch
    epochs = await epochs_of(store, tenant)
    assert epochs == sorted(epochs)
    assert newer.epoch not in epochs
    assert {epoch for epoch in epochs[before.position :] if epoch < newer.epoch} == set()
    await verify(store, tenant)


async def is_held(bus: Bus, store: ValkeyEventStore, tenant: str, epoch: int) -> bool:
    """Does an owner older than ``epoch`` still listen? Somebody may have had the tenant activated anew meanwhile. An empty
    message is refused by whoever listens.
    """
    head = await store.head(tenant)
    if head is not None and head.epoch > epoch:
        return False
    try:
        await bus.request(ask_subject(tenant), b"", 1.0)
    except NoOneListensError:
        return False
    except TimeoutError:
        return True
    return True


async def epochs_of(store: ValkeyEventStore, tenant: str) -> list[int]:
    return [decode_record(stored.record).epoch for stored in await store.read(tenant, 0, 10_000)]


async def test_a_tenant_actor_killed_under_load_loses_and_doubles_nothing(
    platform: UpProcess, bus: Bus, store: ValkeyEventStore
) -> None:
    """K1, K2 on real Ray: clients with ids go on, and the history holds."""
    recorder, tenant = Recorder(), "k2"
    asker = Asker(bus, attempt_timeout_s=0.5)
    clients = [Client(number, tenant, asker, recorder, 1) for number in range(4)]
    await clients[0].set_up()
    await bus.request(ACTIVATE, tenant.encode(), 30.0)
    under_load, killed = asyncio.Event(), False

    def goes_on() -> bool:
        if len(recorder.lines) >= 100:
            under_load.set()
        return not killed or len(recorder.lines) < done + 120

    done = 0
    running = [asyncio.create_task(client.run(goes_on)) for client in clients]
    await asyncio.wait_for(under_load.wait(), 60)
    for pid in await asyncio.to_thread(platform.pids_of, "ray::TenantActor"):
        os.kill(pid, signal.SIGKILL)
    done, killed = len(recorder.lines), True
    await asyncio.gather(*running)
    recorder.add(*await log_of(store, tenant))
    violations = check(recorder.lines)
    assert not violations, "\n".join(map(str, violations))
