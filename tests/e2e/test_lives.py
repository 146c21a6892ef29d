"""What is left when a platform ends: three lives on one data directory, and one on a copy restored from a backup.

Each life is a platform with a start of its own, which takes its time, so each is put to several uses.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.supervision.quarantine import CRASHES_MAX
from events.errors import StoreUnavailableError
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from serve.guard import members
from serve.installation import DataDir
from serve.local_servers import LocalServer, valkey_spec
from serve.platform import LOCAL_MODEL
from serve.ports import free_port
from tests.kit.platform import UpProcess, running_platform, tenantry
from tests.kit.threads import repeating
from tests.kit.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

POISON = "poison"
ORPHAN = "silo-nobody"
# What Ray itself says; a name as an argument is an actor to be started before, which nobody asked for.
LOOK = """
import json, sys, ray
from actors.shard import Limits
from actors.tenant_actor import TenantActor
from events.process import NAMESPACE, detached_actor
from serve.bootstrap.connections import open_connections
from serve.ray_runtime import connect_ray
connect_ray(sys.argv[1])
for name in sys.argv[2:]:
    detached_actor(TenantActor, name, name, "silo", open_connections, Limits())  # not awaited: the janitor may be faster
print(json.dumps([row["name"] for row in ray.util.list_named_actors(all_namespaces=True) if row["namespace"] == NAMESPACE]))
"""


def named_actors(platform: UpProcess, *start: str) -> list[str]:
    command = [sys.executable, "-c", LOOK, platform.running.ray_address, *start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return sorted(names)


def tenant_actors(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(("silo-", "pool-"))]


class Load:
    """Writes of a tenant, one after the other."""

    def __init__(self) -> None:
        self.done = self.failed = 0


@contextmanager
def writing(platform: UpProcess, tenant: str) -> Iterator[Load]:
    load = Load()
    with platform.admin() as admin:

        def write() -> None:
            body = {"limit_usd": f"{load.done + 1}.00", "window": "month"}
            if admin.put(f"/tenants/{tenant}/budget", json=body).is_success:
                load.done += 1
            else:
                load.failed += 1

        with repeating(write):
            yield load


def quarantined(admin: httpx.Client) -> dict[str, str]:
    """Reasons by tenant."""
    answer = admin.get("/quarantine")
    return {row["tenant"]: row["reason"] for row in answer.json()} if answer.is_success else {}


def events_of(admin: httpx.Client, tenant: str) -> list[str]:
    page = admin.get(f"/tenants/{tenant}/events", params={"limit": 1000}).raise_for_status().json()
    return [event["type"] for event in page["data"]]


def call(platform: UpProcess, key: str | None = None) -> None:
    messages: Any = [{"role": "user", "content": "Hi"}]
    platform.client(key).chat.completions.create(model=LOCAL_MODEL, messages=messages, max_tokens=2)


def test_a_data_directory_outlives_its_platforms_and_so_does_its_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, copy, saved = tmp_path / "data", tmp_path / "copy", tmp_path / "backup"
    with monkeypatch.context() as environment:
        environment.setenv("TENANTRY_FAILPOINTS", f"claim.after_epoch_before_load[{POISON}]=crash")
        with running_platform(data) as first, first.admin() as admin:
            call(first)
            assert first.usage("demo")["requests"] == 1
            crash_loop(first, admin)
            first.tenantry("backup", str(saved))
            backed_up = state_of(first, admin)
            call(first)
            assert first.usage("demo")["requests"] == 2
            position = admin.get("/tenants/demo").json()["position"]
            interrupt(first)
    assert asyncio.run(snapshot_position(data, "demo")) == position, "the next start has nothing to replay"
    with running_platform(data) as second, second.admin() as admin:
        assert second.running.demo_key == first.running.demo_key
        call(second)
        assert second.usage("demo")["requests"] == 3
        way_out(second, admin)
        kill_supervisors(second, admin)
        kill_9(second)
    with running_platform(data) as third, third.admin() as admin:
        assert third.usage("demo")["requests"] == 3
        assert admin.get("/tenants/demo/verify").status_code == 200
        assert third.stop(signal.SIGTERM) == 0
        assert members(third.instance) == []
    tenantry(copy, "restore", str(saved))
    with running_platform(copy) as fourth, fourth.admin() as admin:
        assert state_of(fourth, admin) == backed_up
        call(fourth, first.running.demo_key)
        assert fourth.usage("demo")["requests"] == 2
        assert admin.get("/tenants/demo/verify").status_code == 200


def state_of(platform: UpProcess, admin: httpx.Client) -> dict[str, Any]:
    """What a restored platform must have again: figures, the ends of logs, and who is in quarantine."""
    heads = {tenant: admin.get(f"/tenants/{tenant}/verify").raise_for_status().json() for tenant in ("demo", "other")}
    return {"usage": platform.usage("demo"), "heads": heads, "quarantine": quarantined(admin)}


def interrupt(platform: UpProcess) -> None:
    """Ctrl-C ends everything that was started."""
    known = {member.pid for member in members(platform.instance)}
    assert len(known) > 8
    servers = ("valkey.conf", "vault.conf", "nats-server", "serve.local_model")
    assert {platform.pid_of(name) for name in servers} <= known
    assert platform.stop(signal.SIGINT) == 0
    assert members(platform.instance) == []


def kill_9(platform: UpProcess) -> None:
    """It leaves nothing behind either."""
    platform.process.kill()
    platform.process.wait()
    until(lambda: not members(platform.instance), "no process of the killed instance is left")


async def opened(store: ValkeyEventStore) -> None:
    """Valkey listens before it has read its log, and says so."""
    async with asyncio.timeout(30):
        while True:
            try:
                await store.open()
                return
            except StoreUnavailableError:
                await asyncio.sleep(0.05)  # it answers LOADING to every command, and tells nobody when it is done


async def snapshot_position(data_dir: Path, tenant: str) -> int:
    """Of the newest snapshot in a stopped platform's store."""
    password, port = DataDir(data_dir).secrets().valkey_password, free_port()
    server = LocalServer(valkey_spec(data_dir, port, password))
    server.start()
    try:
        server.wait_ready()
        store = ValkeyEventStore(connect(f"redis://:{password}@127.0.0.1:{port}"))
        await opened(store)
        kept = await store.load_snapshots(tenant)
        await store.close()
        return kept[0].position
    finally:
        server.stop()


def crash_loop(platform: UpProcess, admin: httpx.Client) -> None:
    """K8: a tenant that kills the process it shares with others is put into quarantine, and they are served."""
    admin.post("/tenants", json={"id": "other", "name": "Other"}).raise_for_status()
    with writing(platform, "other") as load:
        until(lambda: load.done > 3, "the other tenant writes")

        def asked() -> bool:
            refused = admin.post("/tenants", json={"id": POISON, "name": "Poison"})
            assert refused.status_code in (503, 504), refused.text
            return POISON in quarantined(admin)

        until(asked, "it is in quarantine")
        done = load.done
        until(lambda: load.done > done + 3, "the other tenant goes on")
        refused = admin.post("/tenants", json={"id": POISON, "name": "Poison"})
        assert refused.status_code == 503
        assert f"tenantry tenant release {POISON}" in refused.text
    reasons = quarantined(admin)
    assert set(reasons) == {POISON}, "nobody else is blamed"
    assert f"crashed {CRASHES_MAX} times" in reasons[POISON]
    assert "died while activating it" in reasons[POISON]


def way_out(platform: UpProcess, admin: httpx.Client) -> None:
    """Its defect is mended by now; what remains until it is released is the quarantine, which is in the log."""

    def barred() -> bool:
        answer = admin.post("/tenants", json={"id": POISON, "name": "Poison"})
        return answer.status_code == 503 and "in quarantine" in answer.text

    until(barred, "the quarantine outlives the platform")
    assert POISON in platform.tenantry("tenant", "quarantine")
    platform.tenantry("tenant", "release", POISON, "--reason", "mended")
    until(
        lambda: admin.post("/tenants", json={"id": POISON, "name": "Poison"}).status_code in (201, 409), "it is served"
    )
    assert quarantined(admin) == {}
    assert events_of(admin, POISON)[0] == "tenant.created.v1"


def kill_supervisors(platform: UpProcess, admin: httpx.Client) -> None:
    """K7: those who are active go on, those who are not are activated by its successor, and no actor is there twice."""
    admin.post("/tenants", json={"id": "silo", "name": "Silo", "plan": "pro"}).raise_for_status()
    admin.get("/tenants/silo").raise_for_status()
    name, reason = "model/books", ["--reason", "test"]
    platform.tenantry("breaker", "open", name, *reason)
    (root,) = platform.pids_of("ray::RootSupervisor")
    (shared,) = platform.pids_of("ray::SharedSupervisorsActor")
    before = named_actors(platform, ORPHAN)  # such as a supervisor leaves behind that dies in the middle of a move
    assert ORPHAN in before
    with writing(platform, "other") as pooled, writing(platform, "silo") as alone:
        until(lambda: pooled.done > 3 and alone.done > 3, "both write")
        os.kill(root, signal.SIGKILL)
        os.kill(shared, signal.SIGKILL)
        created = admin.post("/tenants", json={"id": "late", "name": "Late", "plan": "pro"})
        until(
            lambda: created.status_code == 201 or admin.get("/tenants/late").status_code == 200, "a new one is active"
        )
        done = pooled.done, alone.done
        until(lambda: pooled.done > done[0] + 3 and alone.done > done[1] + 3, "both go on")
    assert pooled.failed == alone.failed == 0, "who is active does not notice"
    until(lambda: len(platform.pids_of("ray::RootSupervisor")) == 1, "there is one root supervisor")
    assert platform.pids_of("ray::RootSupervisor") != [root]

    def remembered() -> bool:
        rows = admin.get("/breakers").json()
        return any(row["name"] == name and row["state"] == "forced_open" and row["live"] for row in rows)

    until(remembered, "the breakers' supervisor knows what was forced")
    assert platform.pids_of("ray::SharedSupervisorsActor") != [shared]
    until(lambda: ORPHAN not in named_actors(platform), "the janitor has ended the actor that nobody wants")
    after = named_actors(platform)
    assert after == sorted({*before, "silo-late"} - {ORPHAN}), "those that were there, each once"
    actors = len(tenant_actors(after))
    until(lambda: len(platform.pids_of("ray::TenantActor")) == actors, "a process for each and none besides")
    for tenant in ("other", "silo", "late", POISON):
        assert admin.get(f"/tenants/{tenant}/verify").status_code == 200
