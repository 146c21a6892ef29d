"""What an operator sees and does about breakers, bulkheads and tenants in quarantine; and what a client is told meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import openai
import pytest
from typer.testing import CliRunner, Result

from actors.supervision.shared import SharedSupervisors
from events.ask import Asker
from events.bus import RELEASED, Bus
from events.slices import SYSTEM_TENANT
from events.system import QuarantineTenant
from serve.cli.main import app
from serve.client import AdminClient
from tests.kit.gateway import ADMIN_KEY, ASK, World

Found = TypeVar("Found")
OK_MODEL = "model/ok"
MAINTENANCE = {"action": "open", "reason": "maintenance"}


@pytest.fixture
async def supervised(world: World, supervisors: SharedSupervisors) -> AsyncIterator[World]:
    """Leaves no breaker forced for the tests that follow."""
    yield world
    reset = await world.admin.post(f"/breakers/{OK_MODEL}", json={"action": "reset", "reason": "the test is over"})
    assert reset.status_code == 200
    await supervisors.journal.drained()


class Cli:
    """``tenantry`` against the running gateway. A real command's process ends with its connection; here it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, base_url: str) -> None:
        self._base_url = base_url
        monkeypatch.setattr(AdminClient, "find", lambda _data_dir: self._client)

    async def run(self, *arguments: str) -> Result:
        self._client = AdminClient(self._base_url, ADMIN_KEY)
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        self._client.close()
        return result

    async def text(self, *arguments: str) -> str:
        result = await self.run(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.text(*arguments, "--json"))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, world: World) -> Cli:
    return Cli(monkeypatch, world.base_url)


async def until(look: Callable[[], Awaitable[Found]], timeout_s: float = 20.0) -> Found:
    """What is said on the bus arrives when it arrives."""
    async with asyncio.timeout(timeout_s):
        while not (found := await look()):  # noqa: ASYNC110 - another task's state
            await asyncio.sleep(0.02)
    return found


async def row_of(world: World, path: str, name: str) -> dict[str, Any]:
    """{}: it is not listed. The answer is a bare list."""
    rows = (await world.admin.get(path)).raise_for_status().json()
    assert isinstance(rows, list)
    return next((row for row in rows if row["name"] == name), {})


async def call(world: World) -> str:
    """ "": it was answered; otherwise the error's code."""
    async with world.client() as client:
        try:
            await client.chat.completions.create(model="m-ok", messages=ASK)
        except openai.APIStatusError as error:
            return str(error.code)
    return ""


async def test_a_breaker_is_listed_forced_once_and_explained(supervised: World) -> None:
    world = supervised
    assert await call(world) == ""
    closed = await until(lambda: row_of(world, "/breakers", OK_MODEL))
    assert (closed["state"], closed["tenant"], closed["live"]) == ("closed", None, True)
    assert closed.keys() >= {"since", "cause", "calls", "failures", "slow", "callers", "callers_open"}
    before = datetime.now(UTC).isoformat()
    headers = {"idempotency-key": f"force-{world.tenant}"}
    first = await world.admin.post(f"/breakers/{OK_MODEL}", json=MAINTENANCE, headers=headers)
    again = await world.admin.post(f"/breakers/{OK_MODEL}", json=MAINTENANCE, headers=headers)
    assert first.status_code == 200, first.text
    assert first.json() == again.json()
    assert (first.json()["state"], first.json()["applied"]) == ("forced_open", True)
    assert first.headers["x-tenantry-position"] == str(first.json()["position"])
    other = await world.admin.post(f"/breakers/{OK_MODEL}", json={**MAINTENANCE, "reason": "else"}, headers=headers)
    assert other.status_code == 422
    assert (await row_of(world, "/breakers", OK_MODEL))["state"] == "forced_open"
    now = (await world.admin.get(f"/breakers/{OK_MODEL}")).json()
    assert (now["state"], now["because"]["cause"], now["because"]["by"]) == ("forced_open", "maintenance", "admin")
    then = (await world.admin.get(f"/breakers/{OK_MODEL}", params={"at": before})).json()
    assert then["state"] == "closed"
    assert [change["position"] for change in then["history"]] != [change["position"] for change in now["history"]]
    for action, state in (("close", "forced_closed"), ("reset", "closed")):
        done = await world.admin.post(f"/breakers/{OK_MODEL}", json={"action": action, "reason": "over"})
        assert (done.status_code, done.json()["state"]) == (200, state)
        assert (await row_of(world, "/breakers", OK_MODEL))["state"] == state


@pytest.mark.parametrize(
    "body",
    [{"action": "open"}, {"action": "open", "reason": ""}, {"action": "burn", "reason": "x"}, {**MAINTENANCE, "x": 1}],
)
async def test_a_breaker_is_not_forced_without_a_reason_or_into_what_it_can_not_be(
    world: World, body: dict[str, Any]
) -> None:
    assert (await world.admin.post(f"/breakers/{OK_MODEL}", json=body)).status_code == 400


async def test_a_breaker_of_a_tenant_that_can_not_be_and_one_that_nobody_has_are_refused(supervised: World) -> None:
    refused = await supervised.admin.post(f"/breakers/{OK_MODEL}", json={**MAINTENANCE, "tenant": "No Id"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tenant")
    assert (await supervised.admin.get("/breakers/model/nobody-has-it")).status_code == 404


async def test_what_is_forced_while_the_supervisor_is_away_is_said_to_wait(
    world: World, supervisors: SharedSupervisors
) -> None:
    await supervisors.close()
    name = f"model/away-{world.tenant}"
    forced = await world.admin.post(f"/breakers/{name}", json=MAINTENANCE)
    assert (forced.json()["state"], forced.json()["applied"]) == ("forced_open", False)
    row = await row_of(world, "/breakers", name)
    assert (row["state"], row["cause"], row["live"]) == ("forced_open", "maintenance", False)


async def test_a_call_of_a_model_whose_breaker_is_open_is_503_and_costs_nothing(supervised: World) -> None:
    world = supervised
    assert await call(world) == ""
    served = len(world.upstream.ledger.requests)
    await world.admin.post(f"/breakers/{OK_MODEL}", json=MAINTENANCE)

    async def refused() -> bool:
        return await call(world) == "breaker_open"

    await until(refused)
    calls = len(world.upstream.ledger.requests)
    async with world.client() as client:
        for is_stream in (False, True):
            with pytest.raises(openai.InternalServerError) as refusal:
                await client.chat.completions.create(model="m-ok", messages=ASK, stream=is_stream)
            assert (refusal.value.status_code, refusal.value.code) == (503, "breaker_open")
            assert int(refusal.value.response.headers["retry-after"]) >= 1
            assert OK_MODEL in str(refusal.value)
    assert len(world.upstream.ledger.requests) == calls >= served
    costs = await until(lambda: settled(world))
    assert costs[-2:] == [(0, "failed"), (0, "failed")]
    await world.admin.post(f"/breakers/{OK_MODEL}", json={"action": "reset", "reason": "over"})

    async def answered() -> bool:
        return await call(world) == ""

    await until(answered)


async def settled(world: World) -> list[tuple[int, str]]:
    """What each call was booked at, once nothing is reserved any more; [] before that."""
    events = (await world.admin.get(f"/tenants/{world.tenant}/events", params={"limit": 1000})).json()["data"]
    booked = [event["data"] for event in events if event["type"] == "call.settled.v1"]
    reserved = sum(event["type"] == "call.reserved.v1" for event in events)
    return [(data["cost_nano_usd"], data["outcome"]) for data in booked] if len(booked) == reserved else []


async def test_bulkheads_are_listed_with_who_holds_how_many_permits(supervised: World) -> None:
    world = supervised
    await world.admin.put(f"/tenants/{world.tenant}/tools", json={"allowed": ["mock"]})
    called = await world.admin.post(f"/tenants/{world.tenant}/tools/mock", json={"input": {"n": 1}})
    assert called.status_code == 200, called.text
    row = await until(lambda: row_of(world, "/bulkheads", "mock"))
    assert (row["state"], row["limit"], row["tenant"], row["live"]) == ("free", 5, None, True)
    assert row["leased"] <= row["limit"]
    assert [caller["caller"].startswith("gateway-") for caller in row["callers"]] == [True]


async def test_the_commands_show_force_and_explain(supervised: World, cli: Cli) -> None:
    assert await call(supervised) == ""
    await until(lambda: row_of(supervised, "/breakers", OK_MODEL))
    before = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    forced = await cli.json("breaker", "open", OK_MODEL, "--reason", "it burns")
    assert (forced["state"], forced["applied"]) == ("forced_open", True)
    rows = await cli.json("breakers")
    assert {row["name"]: row["state"] for row in rows}[OK_MODEL] == "forced_open"
    (line,) = [line for line in (await cli.text("breakers")).splitlines() if OK_MODEL in line]
    assert "forced_open" in line
    assert "it burns" in line
    assert "it burns" in await cli.text("breaker", "why", OK_MODEL)
    assert (await cli.json("breaker", "why", OK_MODEL, "--at", before))["state"] == "closed"
    assert (await cli.json("breaker", "close", OK_MODEL, "--reason", "it must"))["state"] == "forced_closed"
    assert (await cli.json("breaker", "reset", OK_MODEL, "--reason", "over"))["state"] == "closed"
    assert isinstance(await cli.json("bulkheads"), list)
    assert "leased" in await cli.text("bulkheads")
    refused = await cli.run("breaker", "open", OK_MODEL)
    assert (refused.exit_code, "--reason" in refused.output) == (2, True)
    assert (await cli.run("breaker", "why", OK_MODEL, "--at", "noon")).exit_code == 2


async def test_a_live_view_shows_it_again_until_it_is_interrupted(
    supervised: World, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = []

    def beat(seconds: float) -> None:
        beats.append(seconds)
        if len(beats) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("serve.cli.resilience.time.sleep", beat)
    await supervised.admin.post(f"/breakers/{OK_MODEL}", json=MAINTENANCE)
    for arguments in (["breakers", "--watch"], ["bulkheads", "-w"]):
        beats.clear()
        shown = await cli.text(*arguments)
        assert shown.count("callers") == 3


async def test_quarantine_is_listed_with_its_reason_and_release_ends_it(
    world: World, asker: Asker, bus: Bus, cli: Cli
) -> None:
    until_us = int((datetime.now(UTC).timestamp() + 600) * 1e6)
    reason = "its activation crashed 5 times within 60 s, at last: KeyError: 'x'"
    await asker.ask(SYSTEM_TENANT, QuarantineTenant(world.tenant, reason, 5, until_us), actor="supervisor")
    listed = (await world.admin.get("/quarantine")).json()
    (row,) = [row for row in listed if row["tenant"] == world.tenant]
    assert (row["reason"], row["crashes"]) == (reason, 5)
    assert row["since"] < row["until"]
    assert world.tenant in await cli.text("tenant", "quarantine")
    assert row in await cli.json("tenant", "quarantine")
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    supervisor = await bus.subscribe(RELEASED, lambda data, _reply_to: told.set_result(data.decode()))
    assert await cli.json("tenant", "release", world.tenant, "--reason", "fixed") == {"reason": "fixed"}
    assert await asyncio.wait_for(told, 10) == world.tenant
    await supervisor.unsubscribe()
    assert world.tenant not in {row["tenant"] for row in (await world.admin.get("/quarantine")).json()}
    again = await world.admin.post(f"/tenants/{world.tenant}/release", json={"reason": "again"})
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")
    assert (await world.admin.post(f"/tenants/{world.tenant}/release", json={})).status_code == 400
