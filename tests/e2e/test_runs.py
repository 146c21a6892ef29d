"""Durable runs as a tenant's developer has them: over HTTP on `tenantry up`, with kills."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from events.run import ENDS
from examples.order import LEDGER_VARIABLE, effects_of, open_ledger
from tests.kit.platform import UpProcess
from tests.kit.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

RUNS = 40
FORWARD = ["charge", "mail", "reserve", "ship"]
TENANT = "flows"


@pytest.fixture(scope="module")
def tenant(platform: UpProcess, admin: httpx.Client) -> Iterator[httpx.Client]:
    admin.post("/tenants", json={"id": TENANT, "name": "Flows"}).raise_for_status()
    key = admin.post(f"/tenants/{TENANT}/keys", json={"name": "e2e"}).raise_for_status().json()["key"]
    with client_of(platform, key) as client:
        yield client


def client_of(platform: UpProcess, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=platform.running.base_url, headers=headers, timeout=60)


def start(client: httpx.Client, saga: str, given: Any = None, **more: Any) -> str:
    response = client.post("/runs", json={"saga": saga, "input": given, **more})
    assert response.status_code == 202, response.text
    run_id: str = response.json()["id"]
    return run_id


def ended(client: httpx.Client, run_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        run: dict[str, Any] = client.get(f"/runs/{run_id}").json()
        return run if run["status"] in ENDS else None

    found = until(look, f"run {run_id} ends")
    assert found is not None
    return found


def count_effects() -> int:
    count: int = open_ledger().execute("SELECT count(*) FROM effects").fetchone()[0]
    return count


@pytest.fixture(autouse=True)
def _ledger(platform: UpProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEDGER_VARIABLE, str(Path(platform.data_dir).parent / "ledger.sqlite"))


def test_an_order_runs_to_its_end_and_a_bad_one_is_undone(platform: UpProcess, tenant: httpx.Client) -> None:
    good, bad = start(tenant, "order", {"sku": "robe"}), start(tenant, "order", {"sku": "robe", "address": ""})
    run = ended(tenant, good)
    assert (run["status"], sorted(run["output"])) == ("completed", ["payment", "shipment"])
    assert [step["status"] for step in run["steps"]] == ["succeeded"] * 4
    assert effects_of(good) == FORWARD
    run = ended(tenant, bad)
    assert (run["status"], run["error"]["code"]) == ("compensated", "no_address")
    assert effects_of(bad) == ["charge", "mail", "refund", "release", "reserve"]
    drawn = platform.tenantry("runs", "show", TENANT, bad)
    assert "compensated" in drawn
    assert drawn.index("charge_payment") < drawn.index("undo:charge_payment")
    assert "no_address: an order without an address" in drawn


def test_every_effect_happens_once_although_the_runner_is_killed(platform: UpProcess, tenant: httpx.Client) -> None:
    before = count_effects()
    run_ids = [start(tenant, "order", {"sku": f"item-{number}"}) for number in range(RUNS // 2)]
    until(lambda: count_effects() > before, "an effect")
    victim = platform.pid_of("ray::RunnerActor")
    run_ids.append(start(tenant, "order", {"sku": "in flight"}))
    os.kill(victim, signal.SIGKILL)
    run_ids += [start(tenant, "order", {"sku": f"item-{number}"}) for number in range(RUNS // 2)]
    runs = [ended(tenant, run_id) for run_id in run_ids]
    assert {run["status"] for run in runs} == {"completed"}
    assert [effects_of(run_id) for run_id in run_ids] == [FORWARD] * len(run_ids)
    assert platform.pid_of("ray::RunnerActor") != victim


def test_the_local_model_researches_and_its_text_is_followed_while_it_writes(
    platform: UpProcess, tenant: httpx.Client
) -> None:
    """``examples/research.py`` with a real model. What so small a one says is its own affair; that it is heard is not."""
    run_id = start(tenant, "research", {"question": "Why are there two tides a day?", "passages": 1})
    told = platform.tenantry("runs", "follow", TENANT, run_id, "--json")
    run = ended(tenant, run_id)
    assert (run["status"], run["output"]["sources"]) == ("completed", ["tides"]), run
    assert len(run["output"]["answer"]) > 0
    events = [json.loads(line) for line in told.splitlines()]
    written = "".join(event["text"] for event in events if event["type"] == "run.delta" and event["step"] == "answer")
    assert written.strip() == run["output"]["answer"]
    assert run["output_tokens"] > 0
    listed = json.loads(platform.tenantry("runs", "list", TENANT, "--saga", "research", "--json"))
    assert [row["id"] for row in listed] == [run_id]


def test_the_same_key_is_the_same_run_and_another_body_is_refused(tenant: httpx.Client) -> None:
    body = {"saga": "approval", "input": 1, "deadline_s": 3600}
    first = tenant.post("/runs", json=body, headers={"idempotency-key": "one"})
    again = tenant.post("/runs", json=body, headers={"idempotency-key": "one"})
    other = tenant.post("/runs", json={**body, "input": 2}, headers={"idempotency-key": "one"})
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 422)
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["x-tenantry-position"] == str(first.json()["position"])


def test_a_run_waits_for_a_person_and_is_followed_without_gaps(platform: UpProcess, tenant: httpx.Client) -> None:
    run_id = start(tenant, "approval")
    assert tenant.get(f"/runs/{run_id}").json()["status"] == "running"
    assert tenant.post(f"/runs/{run_id}/signals/approve", json={"by": "ann"}).status_code == 202
    assert ended(tenant, run_id)["output"] == {"by": "ann"}
    told = tenant.get(f"/runs/{run_id}/events").text
    frames = [frame for frame in told.split("\n\n") if frame.startswith("id: ")]
    assert [frame.splitlines()[0] for frame in frames] == [f"id: {n}" for n in range(1, len(frames) + 1)]
    assert "event: run.started.v1" in frames[0]
    assert "event: run.ended.v1" in frames[-1]
    rest = tenant.get(f"/runs/{run_id}/events", headers={"last-event-id": "2"}).text
    assert [frame for frame in rest.split("\n\n") if frame.startswith("id: ")] == frames[2:]
    late = tenant.post(f"/runs/{run_id}/signals/approve", json=1)
    assert (late.status_code, late.json()["error"]["code"]) == (409, "run_closed")


def test_cancel_retry_and_fork(platform: UpProcess, tenant: httpx.Client) -> None:
    run_id = start(tenant, "approval")
    assert json.loads(platform.tenantry("runs", "cancel", TENANT, run_id, "--json"))["status"] == "cancelled"
    assert tenant.post(f"/runs/{run_id}/retry").json()["error"]["code"] == "run_closed"
    started = json.loads(platform.tenantry("runs", "start", TENANT, "order", "--input", '{"sku": "x"}', "--json"))
    ended(tenant, started["id"])
    forked = tenant.post(f"/runs/{started['id']}/fork", json={"step": "ship"})
    assert forked.status_code == 202, forked.text
    run = ended(tenant, forked.json()["id"])
    assert (run["status"], run["forked_from"]) == ("completed", started["id"])
    assert effects_of(run["id"]) == ["ship"]


def test_runs_call_tools_with_intent_and_result_in_the_log(platform: UpProcess, tenant: httpx.Client) -> None:
    refused = ended(tenant, start(tenant, "with-tool", {"n": 1}))
    assert (refused["status"], refused["error"]["code"]) == ("failed", "tool_not_allowed")
    platform.tenantry("tool", "allow", TENANT, "mock")
    run = ended(tenant, start(tenant, "with-tool", {"n": 1}))
    assert run["status"] == "completed", run
    log = platform.tenantry("events", TENANT, "--json")
    called = [json.loads(line) for line in log.splitlines() if '"tool.called' in line]
    assert [(event["actor"], event["correlation_id"]) for event in called] == [(f"run:{run['id']}", run["id"])]


def test_a_run_of_another_tenant_is_one_that_does_not_exist(platform: UpProcess, tenant: httpx.Client) -> None:
    run_id = start(tenant, "approval")
    with platform.admin() as admin:
        admin.post("/tenants", json={"id": "stranger", "name": "Stranger"})
        key = admin.post("/tenants/stranger/keys", json={"name": "k"}).json()["key"]
        weak = admin.post("/tenants/stranger/keys", json={"name": "w", "scopes": ["inference"]}).json()["key"]
    with client_of(platform, key) as other:
        for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")):
            hidden = other.request(method, f"/runs/{run_id}{path}")
            unknown = other.request(method, f"/runs/{'0' * len(run_id)}{path}")
            assert (hidden.status_code, unknown.status_code) == (404, 404)
            assert hidden.text.replace(run_id, "") == unknown.text.replace("0" * len(run_id), "")
        assert other.post("/runs", json={"saga": "nope"}).json()["error"]["message"].startswith("no saga 'nope'")
    with client_of(platform, weak) as stranger:
        assert stranger.post("/runs", json={"saga": "order", "input": {"sku": "x"}}).status_code == 403
    assert tenant.get(f"/runs/{run_id}").json()["status"] == "running"


def test_sagas_that_can_not_be_imported_are_told_before_anything_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve.cli", "up", "--data-dir", str(tmp_path / "data")]
    environment = {**os.environ, "TENANTRY_SAGAS": "no_such_sagas"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "TENANTRY_SAGAS: module 'no_such_sagas' can't be imported" in done.stderr
    assert not (tmp_path / "data").exists()
