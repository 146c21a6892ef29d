"""The inbox over HTTP: queue a command, follow it to its outcome, look after dead letters."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from actors.relay import Relay
from events.bus import Bus
from events.clock import SystemClock
from events.courier import Courier
from events.dead_letters import DeadLetters
from events.inbox import Inbox, tell_subject
from events.outcomes import Outcomes
from events.slices import SLICE_COUNT
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from tests.kit.gateway import World
from tests.kit.inbox import until
from tests.kit.servers import Servers

BUDGET = {"type": "budget.set", "limit_nano_usd": 25_000_000_000, "window": "month"}


class RelaySwitch:
    """Commands wait until it is on."""

    def __init__(self, relay: Relay, inbox: Inbox) -> None:
        self._relay, self.inbox = relay, inbox
        self.task: asyncio.Task[None] | None = None

    def on(self) -> None:
        self.task = asyncio.create_task(self._relay.run())


@pytest.fixture
async def relay(servers: Servers, valkey_store: ValkeyEventStore, bus: Bus) -> AsyncIterator[RelaySwitch]:
    outcomes, inbox, clock = Outcomes(connect(servers.valkey_url)), Inbox(bus), SystemClock()
    await inbox.prepare()
    letters = DeadLetters(inbox, outcomes, clock)
    running = Relay(range(SLICE_COUNT), inbox, valkey_store, outcomes, letters, Courier(bus), clock)
    switch = RelaySwitch(running, inbox)
    yield switch
    if switch.task is not None:
        switch.task.cancel()
        await asyncio.gather(switch.task, return_exceptions=True)
    await running.close()
    await outcomes.close()


def status_of(admin: httpx.AsyncClient, location: str) -> Callable[[], Awaitable[str]]:
    async def look() -> str:
        response = await admin.get(location.removeprefix("/admin/v1"))
        return str(response.json().get("status", response.status_code))

    return look


async def test_a_queued_command_is_followed_from_202_to_its_outcome(world: World, relay: RelaySwitch) -> None:
    url, headers = f"/tenants/{world.tenant}/commands", {"idempotency-key": "the-budget"}
    told = await world.admin.post(url, json=BUDGET, headers=headers)
    assert told.status_code == 202, told.text
    body = told.json()
    assert (body["status"], body["repeated"]) == ("queued", False)
    assert told.headers["x-tenantry-command"] == body["command_id"]
    status = status_of(world.admin, told.headers["location"])
    assert await status() == "queued"
    again = (await world.admin.post(url, json=BUDGET, headers=headers)).json()
    assert (again["command_id"], again["queued"], again["repeated"]) == (body["command_id"], body["queued"], True)
    relay.on()
    await until(lambda: _is(status, "done"), "the command is done")
    done = (await world.admin.get(f"{url}/{body['command_id']}")).json()
    assert done["position"] == 3
    assert done["result"]
    assert (await world.event_types())[2:] == ["budget.set.v1"]


async def _is(look: Callable[[], Awaitable[str]], status: str) -> bool:
    return await look() == status


async def test_a_refusal_is_an_outcome(world: World, relay: RelaySwitch) -> None:
    relay.on()
    told = await world.admin.post(f"/tenants/{world.tenant}/commands", json={**BUDGET, "limit_nano_usd": -1})
    status = status_of(world.admin, told.headers["location"])
    await until(lambda: _is(status, "refused"), "the command is refused")
    refused = (await world.admin.get(f"/tenants/{world.tenant}/commands/{told.json()['command_id']}")).json()
    assert refused["code"] == "invalid_request"
    assert "negative" in refused["message"]


async def test_what_cannot_be_queued_is_said_at_once(world: World, relay: RelaySwitch) -> None:
    url = f"/tenants/{world.tenant}/commands"
    for body, message in (
        ({"type": "no.such"}, "not a command"),
        ({**BUDGET, "window": "year"}, "not a command"),
        ({**BUDGET, "extra": 1}, "unknown field"),
        ({"type": "tenant.describe"}, "ask it"),
    ):
        refused = await world.admin.post(url, json=body)
        assert refused.status_code == 400, refused.text
        assert message in refused.json()["error"]["message"]
    assert (await world.admin.post("/tenants/nobody-here/commands", json=BUDGET)).status_code == 404
    assert (await world.admin.get(f"{url}/never-told")).status_code == 404
    async with httpx.AsyncClient(base_url=world.admin.base_url, timeout=60) as stranger:
        assert (await stranger.post(url, json=BUDGET)).status_code == 401


async def test_dead_letters_are_listed_shown_replayed_and_discarded(world: World, relay: RelaySwitch) -> None:
    tenant = world.tenant
    for number in (1, 2):
        await relay.inbox.put(tell_subject(tenant), b"\xc1rubbish", f"{tenant}-{number}", {}, 5.0)
    relay.on()
    await until(lambda: _dead(world, 2), "both are dead")
    rows = (await world.admin.get("/dead-letters", params={"tenant": tenant})).json()["data"]
    assert [(row["tenant"], row["cause"], row["attempts"]) for row in rows] == [(tenant, "undecodable", 1)] * 2
    url = f"/tenants/{tenant}/dead-letters/{rows[0]['id']}"
    shown = (await world.admin.get(url)).json()
    assert bytes.fromhex(shown["data_hex"]) == b"\xc1rubbish"
    assert shown["headers"] == {"Nats-Msg-Id": f"{tenant}-1"}
    unsure = await world.admin.delete(url)
    assert (unsure.status_code, unsure.json()["error"]["param"]) == (400, "confirm")
    assert (await world.admin.delete(url, params={"confirm": rows[0]["id"]})).status_code == 200
    assert (await world.admin.get(url)).status_code == 404
    replayed = await world.admin.post(f"/tenants/{tenant}/dead-letters/{rows[1]['id']}/replay")
    assert replayed.status_code == 202, replayed.text
    await until(lambda: _died_again(world, rows[1]["id"]), "it is still rubbish, and dead again")


async def test_the_doctor_says_whether_the_queues_are_served(world: World, relay: RelaySwitch) -> None:
    for info in await relay.inbox.consumers_of(range(SLICE_COUNT)):
        await relay.inbox.delete_consumer(info.name)
    assert (await _queues(world))["ok"] is False
    assert "nobody relays 128 of 128 slices" in (await _queues(world))["detail"]
    relay.on()
    await until(lambda: _served(world), "the doctor sees the relay")


async def _queues(world: World) -> dict[str, Any]:
    findings = (await world.admin.get("/doctor")).json()["findings"]
    found: dict[str, Any] = next(finding for finding in findings if finding["name"] == "queues")
    return found


async def _served(world: World) -> bool:
    return (await _queues(world))["ok"] is True


async def _dead(world: World, count: int) -> bool:
    page = (await world.admin.get("/dead-letters", params={"tenant": world.tenant})).json()
    return len(page["data"]) == count


async def _died_again(world: World, first_id: str) -> bool:
    page = (await world.admin.get("/dead-letters", params={"tenant": world.tenant})).json()
    return [row["id"] != first_id for row in page["data"]] == [True]
