"""The drill: write, back up, write more, lose everything, restore, verify, go on. On real servers."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from actors.shard import Shard
from events.archive import Archive, archive_log
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.keys import Keys, parse_master_keys
from events.slices import SLICE_COUNT
from events.tenant import CreateTenant, DescribeTenant, IssueKey, ReserveCall, SettleCall
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.valkey_vault import ValkeyVault
from events.vault import Witnessed
from events.verify import verify
from projections.actor import PROJECTIONS
from projections.runner import ReadModels, Runner
from projections.usage import UsageProjection, read_usage
from serve.backup import BackupError, Manifest, back_up, restore
from serve.installation import DataDir, Running, Secrets
from serve.local_servers import LocalServer, nats_spec, valkey_spec
from serve.ports import free_port
from tests.kit.activator import activating

TENANTS = ("acme", "globex", "initech")
QUIET = print


class Installation:
    """The servers of ``tenantry up`` on a data directory, a shard and a projection runner; no Ray."""

    def __init__(self, path: Path) -> None:
        self.data = DataDir(path)

    @asynccontextmanager
    async def up(self) -> AsyncIterator["Installation"]:
        secrets = self.data.secrets()
        servers = [
            LocalServer(valkey_spec(self.data.path, free_port(), secrets.valkey_password)),
            LocalServer(valkey_spec(self.data.path, free_port(), secrets.vault_password, name="vault")),
            LocalServer(nats_spec(self.data.path, free_port(), "tenantry", secrets.nats_password)),
        ]
        try:
            for server in servers:
                await asyncio.to_thread(server.start)
            for server in servers:
                await asyncio.to_thread(server.wait_ready)
            valkey, vault, nats = (server.spec.port for server in servers)
            self.running = Running(
                "",
                "",
                "",
                f"nats://tenantry:{secrets.nats_password}@127.0.0.1:{nats}",
                f"redis://:{secrets.valkey_password}@127.0.0.1:{valkey}",
                "",
                f"redis://:{secrets.vault_password}@127.0.0.1:{vault}",
                str(self.data.path / "archive"),
                str(self.data.path / "objects"),
            )
            async with self._connected(secrets):
                yield self
        finally:
            for server in servers:
                await asyncio.to_thread(server.stop)

    @asynccontextmanager
    async def _connected(self, secrets: Secrets) -> AsyncIterator[None]:
        self.archive = Archive(self.running.archive_url)
        self.store = ValkeyEventStore(connect(self.running.valkey_url), self.archive)
        await self.store.open()
        self.vault = ValkeyVault(connect(self.running.vault_url))
        await self.vault.open()
        keys = Keys(self.vault, parse_master_keys(secrets.master_key))
        self.models = ReadModels(connect(self.running.valkey_url, db=1), keys)
        await self.models.open()
        bus = await Bus.connect(self.running.nats_url, "test", lambda: None)
        shard = Shard("test", "pool", self.store, bus, SystemClock(), keys)
        self.asker = Asker(bus)
        projecting = asyncio.create_task(Runner(self.store, self.models, bus, PROJECTIONS, range(SLICE_COUNT)).run())
        try:
            async with activating(bus, shard):
                yield
        finally:
            projecting.cancel()
            await asyncio.wait([projecting])
            await shard.close()
            await bus.close()
            await self.models.close()
            await self.vault.close()
            await self.store.close()

    async def create(self, tenant: str) -> None:
        await self.asker.ask(tenant, CreateTenant(f"Name of {tenant}"), actor="test")
        await self.asker.ask(tenant, IssueKey("k1", "default", b"d" * 32), actor="test")

    async def call(self, tenant: str, call: str) -> None:
        """One call of 3 tokens in and 2 out."""
        await self.asker.ask(tenant, ReserveCall(call, "k1", "small", 10, 10**9), actor="test")
        await self.asker.ask(tenant, SettleCall(call, 3, 2, 7, "ok", "measured"), actor="test")

    async def requests(self, tenant: str) -> int:
        """By the usage read model, when it has seen all of the log."""
        head = await self.store.head(tenant)
        assert head is not None
        async with asyncio.timeout(30):
            while await self.models.checkpoint(UsageProjection(), tenant) < head.position:  # noqa: ASYNC110 - no bell
                await asyncio.sleep(0.01)
        fields = await self.models.fields(UsageProjection(), tenant)
        return sum(used.requests for used in read_usage(fields).values())


def wipe(path: Path) -> None:
    shutil.rmtree(path)


async def heads_of(site: Installation) -> dict[str, tuple[int, str]]:
    """By walking the chains."""
    found = {}
    for tenant in TENANTS:
        verified = await verify(site.store, tenant, site.vault)
        found[tenant] = (verified.events, verified.head_hash)
    return found


def heads_in(manifest: Manifest) -> dict[str, tuple[int, str]]:
    return {tenant: (end.position, end.hash) for tenant, end in manifest.heads.items()}


async def test_the_drill(tmp_path: Path) -> None:
    """Under traffic, and with a part of the log in the archive: what was there at the backup is back, to the event; what
    came later is gone; the platform goes on, and the figures are right.
    """
    data, saved = tmp_path / "data", tmp_path / "saved"
    async with Installation(data).up() as site:
        for tenant in TENANTS:
            await site.create(tenant)
            for number in range(20):
                await site.call(tenant, f"c{number}")
        assert await archive_log(site.store, site.archive, "acme", keep=10, least=1) > 0
        (data / "objects" / "acme").mkdir(parents=True)
        (data / "objects" / "acme" / "o1").write_bytes(b"sealed")
        stop = asyncio.Event()

        async def traffic() -> int:
            done = 0
            while not stop.is_set():
                await site.call("globex", f"busy-{done}")
                done += 1
            return done

        busy = asyncio.create_task(traffic())
        manifest = await back_up(site.data, site.running, saved, with_keys=True, say=QUIET)
        stop.set()
        acknowledged = 20 + await busy
        for tenant in TENANTS:
            await site.call(tenant, "after-the-backup")
        await archive_log(site.store, site.archive, "acme", keep=0, least=1)
        await site.create("too-late")
        incarnation = await site.store.incarnation()
        before = await heads_of(site)
        epochs = await site.store.epochs(TENANTS)
    assert manifest.incarnation == incarnation
    assert set(manifest.heads) == set(TENANTS)
    assert msgspec.json.decode((saved / "manifest.json").read_bytes(), type=Manifest) == manifest
    wipe(data)

    again = tmp_path / "again"
    restored = await restore(saved, again, None, QUIET)
    assert restored.broken == {}
    assert (again / "objects" / "acme" / "o1").read_bytes() == b"sealed"
    async with Installation(again).up() as site:
        assert await heads_of(site) == heads_in(manifest)
        assert await site.store.head("too-late") is None
        assert await site.store.incarnation() == restored.incarnation != incarnation
        assert all(now > then for now, then in zip(await site.store.epochs(TENANTS), epochs, strict=True))  # type: ignore[operator]
        assert await site.requests("acme") == await site.requests("initech") == 20
        assert 20 <= await site.requests("globex") <= acknowledged
        for tenant in TENANTS:
            described = await site.asker.ask(tenant, DescribeTenant(), actor="test")
            assert described.result["name"] == f"Name of {tenant}"  # the keys are there, too
            await site.call(tenant, "after-the-restore")
            assert before[tenant] != (await heads_of(site))[tenant]
        assert await site.requests("acme") == 21
        assert (await verify(site.store, "acme", site.vault)).events == manifest.heads["acme"].position + 2
        await site.create("too-late")  # its name is free again


async def test_keys_can_lie_elsewhere_and_are_needed(tmp_path: Path) -> None:
    data, saved, with_keys = tmp_path / "data", tmp_path / "saved", tmp_path / "with-keys"
    async with Installation(data).up() as site:
        await site.create("acme")
        await back_up(site.data, site.running, saved, with_keys=False, say=QUIET)
        await back_up(site.data, site.running, with_keys, with_keys=True, say=QUIET)
    secrets = (data / "secrets.json").read_bytes()
    master_key = json.loads(secrets)["master_key"].encode()
    assert not any(master_key in path.read_bytes() for path in saved.rglob("*") if path.is_file())
    with pytest.raises(BackupError, match=r"holds no keys.*--keys"):
        await restore(saved, tmp_path / "again", None, QUIET)
    assert (await restore(saved, tmp_path / "again", with_keys / "keys", QUIET)).broken == {}
    assert (tmp_path / "again" / "secrets.json").read_bytes() == secrets


async def test_a_backup_that_was_changed_or_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    data, saved, again = tmp_path / "data", tmp_path / "saved", tmp_path / "again"
    async with Installation(data).up() as site:
        await site.create("acme")
        await back_up(site.data, site.running, saved, with_keys=True, say=QUIET)
        with pytest.raises(BackupError, match="not empty"):
            await back_up(site.data, site.running, saved, with_keys=True, say=QUIET)
        elsewhere = DataDir(tmp_path / "other")
        with pytest.raises(BackupError, match="not one that `tenantry up` started there"):
            await back_up(elsewhere, site.running, tmp_path / "more", with_keys=True, say=QUIET)
        remote = msgspec.structs.replace(site.running, archive_url="s3://bucket/archive")
        with pytest.raises(BackupError, match="s3://bucket/archive"):
            await back_up(site.data, remote, tmp_path / "more", with_keys=True, say=QUIET)
    with pytest.raises(BackupError, match="not empty"):
        await restore(saved, data, None, QUIET)
    for path in [path for path in saved.rglob("*") if path.is_file() and path.name != "manifest.json"]:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b"x")
        with pytest.raises(BackupError, match=f"{path.name}.*not what was written"):
            await restore(saved, again, None, QUIET)
        path.unlink()
        with pytest.raises(BackupError, match=f"{path.name} is missing"):
            await restore(saved, again, None, QUIET)
        path.write_bytes(content)
    (saved / "log" / "more").touch()
    with pytest.raises(BackupError, match="more is not in the manifest"):
        await restore(saved, again, None, QUIET)
    assert [path.name for path in tmp_path.iterdir() if "again" in path.name or "more" in path.name] == []


async def test_a_log_that_is_not_what_the_manifest_says_comes_back_halted_and_alone(tmp_path: Path) -> None:
    data, saved = tmp_path / "data", tmp_path / "saved"
    async with Installation(data).up() as site:
        for tenant in ("acme", "globex"):
            await site.create(tenant)
        manifest = await back_up(site.data, site.running, saved, with_keys=True, say=QUIET)
    wrong = msgspec.structs.replace(manifest.heads["acme"], hash="00" * 32)
    heads = {**manifest.heads, "acme": wrong}
    (saved / "manifest.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, heads=heads)))
    restored = await restore(saved, tmp_path / "again", None, QUIET)
    assert set(restored.broken) == {"acme"}
    async with Installation(tmp_path / "again").up() as site:
        head = await site.store.head("acme")
        assert head is not None
        assert head.status == "halted"
        await site.call("globex", "c1")


async def test_the_vault_of_a_later_day_does_not_halt_an_older_log(tmp_path: Path) -> None:
    """Its witness knows more than the log that was restored; only this path may tell it so."""
    data, saved, later = tmp_path / "data", tmp_path / "saved", tmp_path / "later"
    async with Installation(data).up() as site:
        await site.create("acme")
        manifest = await back_up(site.data, site.running, saved, with_keys=False, say=QUIET)
        await site.call("acme", "c1")
        end = manifest.heads["acme"].position + 2
        head = await site.store.head("acme")
        assert head is not None
        await site.vault.witness({"acme": Witnessed(end, head.hash, head.epoch)})
        await site.vault.witness({"gone": Witnessed(3, b"g" * 32, 7)})
        await back_up(site.data, site.running, later, with_keys=True, say=QUIET)
    assert (await restore(saved, tmp_path / "again", later / "keys", QUIET)).broken == {}
    async with Installation(tmp_path / "again").up() as site:
        await site.call("acme", "c2")
        assert (await verify(site.store, "acme", site.vault)).events == end
        assert "gone" not in await site.vault.all_witnessed()
