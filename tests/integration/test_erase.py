"""A tenant is erased: unreadable everywhere, proven, and its chain still verifies."""

from pathlib import Path
from typing import Any

import openai
import pytest

from events.bus import Bus
from events.codec import GENESIS, chain
from events.keys import Keys
from events.objects import Objects
from events.store import Append, Snapshot
from events.valkey_store import ValkeyEventStore
from events.work import Message, WorkQueue
from tests.kit.factories import created, record
from tests.kit.gateway import ASK, World
from tests.kit.servers import Servers


async def test_an_erased_tenant_is_unreadable_everywhere_and_its_chain_still_verifies(
    world: World,
    servers: Servers,
    valkey_store: ValkeyEventStore,
    new_tenant: Any,
    bus: Bus,
    keys: Keys,
    tmp_path: Path,
) -> None:
    """Proven by the report, and by the server's own file: not even what was deleted had ever been there in clear."""
    name, tenant = "Zanzibar Q. Canary", new_tenant()
    assert (await world.admin.post("/tenants", json={"id": tenant, "name": name})).json()["name"] == name
    issued = await world.admin.post(f"/tenants/{tenant}/keys", json={"name": f"key of {name}"})
    assert (await world.admin.get(f"/tenants/{tenant}")).json()["name"] == name
    rows = (await world.admin.get("/tenants", params={"limit": 1000})).json()["data"]
    assert next(row for row in rows if row["id"] == tenant)["name"] == name
    queue, objects = WorkQueue(bus), Objects(str(tmp_path / "objects"), keys)
    await queue.prepare()
    await queue.put(f"work.tool.{tenant}.1", Message(tenant, 1.0, 0, b"sealed"))
    await objects.put(tenant, b"large")
    assert (await queue.count(tenant), await objects.count(tenant)) == (1, 1)
    await valkey_store.save_snapshot(tenant, Snapshot(1, 1, bytes(32), b"sealed"))

    report = (await world.admin.post(f"/tenants/{tenant}/erase")).json()
    assert report["ok"], report
    assert (await queue.count(tenant), await objects.count(tenant)) == (0, 0)
    assert {place["name"] for place in report["places"]} >= {
        "log",
        "vault",
        "archive",
        "read models",
        "hash chain",
        "work queue",
        "object area",
    }
    assert (await world.admin.post(f"/tenants/{tenant}/erase")).json()["ok"]

    gone = await world.admin.get(f"/tenants/{tenant}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "tenant_erased")
    async with world.client(issued.json()["key"]) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(model="m-ok", messages=ASK)
    assert refused.value.status_code in (401, 410)
    events = (await world.admin.get(f"/tenants/{tenant}/events")).json()["data"]
    assert [event["type"] for event in events] == ["tenant.created.v1", "key.issued.v1", "tenant.erased.v1"]
    assert {events[0]["data"]["name"], events[1]["data"]["name"]} == {"[erased]"}
    assert (await world.admin.get(f"/tenants/{tenant}/verify")).json()["events"] == 3
    was = (await world.admin.get(f"/tenants/{tenant}", params={"at": 2})).json()
    assert (was["name"], was["keys_active"]) == ("[erased]", 1)
    for file in (Path(servers.valkey.spec.argv[1]).parent / "appendonlydir").iterdir():
        assert name.encode() not in file.read_bytes(), file


async def test_what_was_written_before_encryption_is_reported_not_claimed_to_be_erased(
    world: World, valkey_store: ValkeyEventStore, new_tenant: Any
) -> None:
    tenant = new_tenant()
    epoch = (await valkey_store.claim(tenant)).epoch
    entries = chain(GENESIS, [record(created("Old"), epoch=epoch)])
    await valkey_store.append(Append(tenant, epoch, 0, GENESIS, entries, []))
    report = (await world.admin.post(f"/tenants/{tenant}/erase")).json()
    assert not report["ok"]
    assert [place["name"] for place in report["places"] if not place["ok"]] == ["log"]
    assert "positions 1" in next(place["detail"] for place in report["places"] if place["name"] == "log")
