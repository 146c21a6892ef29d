"""The supervisors of a real platform: a tenant that kills its process again and again, and what is left when they are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from actors.supervision.quarantine import CRASHES_MAX
from tests.kit.platform import UpProcess, running_platform
from tests.kit.threads import repeating

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

POISON = "poison"
ORPHAN = "silo-nobody"
WAIT_S = 90.0
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


def until(holds: Callable[[], object], what: str) -> None:
    ends = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < ends, f"not in {WAIT_S:g} s: {what}"
        time.sleep(0.05)  # other processes' state: there is nothing to wait on


def tenantry(platform: UpProcess, *arguments: str) -> str:
    command = [sys.executable, "-m", "serve.cli", *arguments, "--data-dir", str(platform.data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


def test_a_tenant_that_kills_its_process_is_quarantined_others_are_served_and_release_is_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K8, then K7. The tenant shares its process with others. Its defect is mended by a restart without it; what remains
    until it is released is the quarantine, which is in the log. Then supervisors are killed.
    """
    data = tmp_path / "data"
    with monkeypatch.context() as environment:
        environment.setenv("TENANTRY_FAILPOINTS", f"claim.after_epoch_before_load[{POISON}]=crash")
        with running_platform(data) as platform, platform.admin() as admin:
            crash_loop(platform, admin)
    with running_platform(data) as platform, platform.admin() as admin:
        way_out(platform, admin)
        kill_supervisors(platform, admin)


def crash_loop(platform: UpProcess, admin: httpx.Client) -> None:
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
    def barred() -> bool:
        answer = admin.post("/tenants", json={"id": POISON, "name": "Poison"})
        return answer.status_code == 503 and "in quarantine" in answer.text

    until(barred, "the quarantine outlives the platform")
    assert POISON in tenantry(platform, "tenant", "quarantine")
    tenantry(platform, "tenant", "release", POISON, "--reason", "mended")
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
    tenantry(platform, "breaker", "open", name, *reason)
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
