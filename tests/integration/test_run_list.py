"""Lists of runs: from their read model, by what became of them. The runner's part is played by hand."""

from typing import Any

import httpx

from actors.run import Saga, Signal, Step, Undo, register
from actors.run.definition import Retry
from events.clock import SystemClock
from events.keys import Keys
from events.run import CancelRun, FailStep, FinishStep, RetryRun, SignalRun, StartRun, pack
from events.slices import slice_of
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from projections.retention import RunRetention
from projections.runner import ReadModels
from projections.runs import RunsProjection
from tests.kit.cli import Cli
from tests.kit.clock import ManualClock
from tests.kit.gateway import World
from tests.kit.servers import Servers

BACK = Undo(function="list-undo", retry=Retry(attempts=1))
STEPS = (Step("do", function="list-do", undo=BACK, retry=Retry(attempts=1)), Signal("go"))
register(Saga("list-a", steps=STEPS))
register(Saga("list-b", steps=STEPS))
register(Saga("list-c", steps=(Step("do", function="list-do", retry=Retry(attempts=1)),)))


async def prepared(world: World) -> None:
    """One run of each kind: done, cancelled before it did anything, stuck on its way back, under way."""

    async def ask(*commands: Any) -> None:
        for command in commands:
            await world.asker.ask(world.tenant, command, actor="test")

    await ask(
        StartRun("done", "list-a", pack(None)), FinishStep("done", "do", 1, pack(1), 1), SignalRun("done", "go", b"")
    )
    await ask(StartRun("cut", "list-b", pack(None)), CancelRun("cut"), FailStep("cut", "do", 1, "gone", "", False, 1))
    await ask(StartRun("stuck", "list-a", pack(None)), FinishStep("stuck", "do", 1, pack(1), 1), CancelRun("stuck"))
    await ask(FailStep("stuck", "undo:do", 1, "refused", "the shop says no", False, 1))
    await ask(StartRun("open", "list-b", pack(None), tags={"team": "red"}))


async def test_runs_are_listed_by_status_saga_and_time_a_page_at_a_time(world: World, cli: Cli) -> None:
    await prepared(world)
    headers = {"authorization": f"Bearer {world.key}"}
    async with httpx.AsyncClient(base_url=f"{world.base_url}/v1", headers=headers, timeout=60) as tenant:

        async def ids(**query: Any) -> list[str]:
            """Over all pages."""
            found, after = [], ""
            while True:
                response = await tenant.get("/runs", params={**query, "after": after})
                assert response.status_code == 200, response.text
                found += [row["id"] for row in response.json()["data"]]
                if not (after := response.json()["next"] or ""):
                    return found

        assert await ids() == await ids(limit=1) == await ids(limit=3) == ["open", "stuck", "cut", "done"]
        assert await ids(status="completed") == ["done"]
        assert await ids(status="cancelled") == ["cut"]
        assert await ids(status="running") == ["open"]
        assert await ids(saga="list-a", limit=1) == ["stuck", "done"]
        assert await ids(saga="list-a", status="failed") == await ids(status="stuck") == ["stuck"]
        rows = {row["id"]: row for row in (await tenant.get("/runs")).json()["data"]}
        assert rows["stuck"]["stuck"] == ["stuck#undo:do"]
        assert (rows["open"]["tags"], rows["open"]["ended_us"]) == ({"team": "red"}, 0)
        since = rows["stuck"]["started_us"]
        assert await ids(since_us=since) == ["open", "stuck"]
        assert await ids(until_us=since) == ["cut", "done"]
        assert (await tenant.get("/runs", params={"after": "nonsense"})).status_code == 400
        assert (await tenant.get("/runs", params={"status": "lost"})).status_code == 400
    listed = await cli("runs", "list", world.tenant, "--saga", "list-b", "--limit", "1")
    assert [row["id"] for row in listed] == ["open"]


async def test_what_could_not_be_undone_raises_an_alarm_until_a_person_has_it_tried_again(world: World) -> None:
    await prepared(world)

    async def alarm() -> tuple[bool, str]:
        findings = (await world.admin.get("/doctor")).json()["findings"]
        found = next(each for each in findings if each["name"] == "compensations")
        return found["ok"], found["detail"]

    async def listed(status: str) -> list[str]:
        page = await world.admin.get(f"/tenants/{world.tenant}/runs", params={"status": status})
        return [row["id"] for row in page.json()["data"]]

    assert await listed("stuck") == ["stuck"]
    ok, detail = await alarm()
    assert not ok
    assert f"{world.tenant} stuck#undo:do" in detail
    assert "tenantry runs retry" in detail
    await world.asker.ask(world.tenant, RetryRun("stuck"), actor="test")
    assert await listed("stuck") == []
    await world.asker.ask(world.tenant, FinishStep("stuck", "undo:do", 2, pack(None), 1), actor="test")
    assert await listed("cancelled") == ["stuck", "cut"]
    ok, detail = await alarm()
    assert world.tenant not in detail


async def test_an_operator_caps_a_tenants_steps(world: World, cli: Cli) -> None:
    await prepared(world)
    assert (await cli("runs", "caps", world.tenant))["steps_max"] == 256
    capped = await cli("runs", "caps", world.tenant, "--steps", "1", "--of", "list-do=1")
    assert (capped["steps_max"], capped["targets"], capped["under_way"]) == (1, {"list-do": 1}, {"list-do": 1})
    await world.asker.ask(world.tenant, StartRun("late", "list-a", pack(None)), actor="test")
    run = (await world.admin.get(f"/tenants/{world.tenant}/runs/late")).json()
    assert run["steps"][0]["status"] == "queued"
    assert (await cli("runs", "caps", world.tenant))["queued"] == 1
    assert (await cli("runs", "caps", world.tenant, "--reset"))["queued"] == 0
    run = (await world.admin.get(f"/tenants/{world.tenant}/runs/late")).json()
    assert run["steps"][0]["status"] == "scheduled"


async def test_a_run_leaves_the_list_some_time_after_its_end_and_comes_back_when_it_is_tried_again(
    world: World, servers: Servers, keys: Keys
) -> None:
    await prepared(world)
    await world.asker.ask(world.tenant, StartRun("failed", "list-c", pack(None)), actor="test")
    await world.asker.ask(world.tenant, FailStep("failed", "do", 1, "gone", "", False, 1), actor="test")
    store, models = ValkeyEventStore(connect(servers.valkey_url)), ReadModels(connect(servers.valkey_url, db=1), keys)

    async def listed(**query: str) -> list[str]:
        rows = (await world.admin.get(f"/tenants/{world.tenant}/runs", params=query)).json()["data"]
        return [row["id"] for row in rows]

    assert await listed() == ["failed", "open", "stuck", "cut", "done"]
    slices, day_us = [slice_of(world.tenant)], 24 * 3600 * 1_000_000
    now_us = SystemClock().now_us()
    await RunRetention(store, models, ManualClock(now_us + 29 * day_us), slices, 30 * day_us).sweep()
    assert len(await listed()) == 5, "not yet"
    await RunRetention(store, models, ManualClock(now_us + 31 * day_us), slices, 30 * day_us).sweep()
    assert await listed() == ["open", "stuck"]
    assert await listed(status="completed") == await listed(saga="list-c") == []
    assert (await world.admin.get(f"/tenants/{world.tenant}/runs/done")).json()["status"] == "completed"
    await world.asker.ask(world.tenant, RetryRun("failed"), actor="test")
    assert await listed() == ["failed", "open", "stuck"]
    assert await listed(saga="list-c") == ["failed"]
    await models.close()
    await store.close()


async def test_a_list_is_erased_with_its_tenant(world: World, servers: Servers, keys: Keys) -> None:
    await prepared(world)
    models = ReadModels(connect(servers.valkey_url, db=1), keys)
    assert (await world.admin.get(f"/tenants/{world.tenant}/runs")).json()["data"]
    assert await models.indexes(RunsProjection(), world.tenant)
    report = (await world.admin.post(f"/tenants/{world.tenant}/erase")).json()
    assert report["ok"], report
    assert await models.indexes(RunsProjection(), world.tenant) == []
    assert await models.count(RunsProjection(), world.tenant, "all") == 0
    await models.close()
