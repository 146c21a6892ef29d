"""A store that comes back with less than it had acknowledged: noticed, alarmed, never forked; also when everything that
knew better has ended.
"""

import asyncio
import logging
import shutil
from pathlib import Path

import pytest

from actors.shard import Shard
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.errors import LogRewoundError, StoreUnavailableError, TenantClosedError
from events.keys import Keys
from events.memory_vault import MemoryVault
from events.tenant import CreateTenant, IssueKey, ReserveCall
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.vault import Witnessed
from events.verify import verify
from events.witness import Witness, accept_loss, loss
from serve.local_servers import LocalServer
from tests.kit.activator import activating
from tests.kit.factories import append_request
from tests.kit.servers import Servers, open_vault, running_servers


class Life:
    """One life of all processes; ``ask`` is answered only after the append."""

    def __init__(self, servers: Servers, store: ValkeyEventStore, bus: Bus, keys: Keys) -> None:
        self.store, self._bus = store, bus
        self.shard = Shard("life", "pool", store, bus, SystemClock(), keys)
        self._asker = Asker(bus)

    async def reserve(self, *calls: str) -> None:
        async with activating(self._bus, self.shard):
            for call in calls:
                await self._asker.ask("acme", ReserveCall(call, "k1", "small", 10, 10**9), actor="test")

    async def create(self) -> None:
        async with activating(self._bus, self.shard):
            await self._asker.ask("acme", CreateTenant("Acme"), actor="test")
            await self._asker.ask("acme", IssueKey("k1", "default", b"d" * 32), actor="test")

    async def end(self) -> None:
        await self.shard.close()
        await self._bus.close()
        await self.store.close()


async def begin(servers: Servers, keys: Keys) -> Life:
    store = ValkeyEventStore(connect(servers.valkey_url))
    await store.open()
    return Life(servers, store, await Bus.connect(servers.nats_url, "test", lambda: None), keys)


async def test_an_old_copy_of_the_store_halts_the_tenant_also_after_everything_was_restarted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The copy is a valid, shorter log: nothing in it tells that events are missing. The vault does."""
    log_files, copy = tmp_path / "valkey" / "appendonlydir", tmp_path / "copy"
    with running_servers(tmp_path) as servers:
        vault, keys = await open_vault(servers.vault_url)
        first = await begin(servers, keys)
        await first.create()
        await first.reserve("c1")
        await first.end()
        shutil.copytree(log_files, copy)
        second = await begin(servers, keys)
        await second.reserve("c2", "c3")
        await second.end()
        await asyncio.to_thread(servers.valkey.stop)
        shutil.rmtree(log_files)
        shutil.copytree(copy, log_files)
        restored = LocalServer(servers.valkey.spec)
        await asyncio.to_thread(restored.start)
        await asyncio.to_thread(restored.wait_ready)

        third = await begin(servers, keys)
        with (
            caplog.at_level(logging.CRITICAL),
            pytest.raises(LogRewoundError, match="position 5 was acknowledged") as alarm,
        ):
            await third.shard.host("acme")
        assert alarm.value.found == 3
        assert "tenant.log_rewound" in caplog.text
        assert "--accept-loss" in str(alarm.value)
        with pytest.raises(TenantClosedError, match="halted"):
            await third.shard.host("acme")
        with pytest.raises(LogRewoundError):
            await verify(third.store, "acme", vault)
        assert (await verify(third.store, "acme")).events == 3  # by itself, the copy looks fine

        await accept_loss(third.store, vault, "acme")
        await third.store.resume("acme")
        await third.reserve("c4")
        assert (await verify(third.store, "acme", vault)).events == 4
        await third.end()
        await vault.close()
        await asyncio.to_thread(restored.stop)


async def test_another_log_of_the_same_length_is_noticed_too(valkey_store: ValkeyEventStore, keys: Keys) -> None:
    """As after a failover in which both sides went on: position alone would not tell."""
    epoch = (await valkey_store.claim("forked")).epoch
    await valkey_store.append(append_request("forked", epoch=epoch, events=5))
    log = await valkey_store.read("forked", 0)
    head = await valkey_store.head("forked")
    for seen, expected in (
        (Witnessed(3, log[2].hash, 1), None),
        (Witnessed(3, b"x" * 32, 1), 2),
        (Witnessed(5, b"x" * 32, 1), 4),
    ):
        await keys.vault.accept("forked", seen)
        found = await loss(valkey_store, keys.vault, "forked", head)
        assert (found and found.found) == expected
    gone = await loss(valkey_store, keys.vault, "forked", None)
    assert gone is not None
    assert (gone.acknowledged, gone.found) == (5, 0)
    await keys.vault.accept("forked", None)
    assert await loss(valkey_store, keys.vault, "forked", head) is None


async def test_a_vault_that_is_away_is_told_later_and_holds_up_no_append() -> None:
    class Away(MemoryVault):
        is_away = True

        async def witness(self, heads: object) -> None:
            if self.is_away:
                raise StoreUnavailableError("away")
            await super().witness(heads)  # type: ignore[arg-type]

    vault = Away()
    witness = Witness(vault, period_s=0.01)
    witness.note("acme", Witnessed(1, b"a" * 32, 1))
    await witness.flush()
    witness.note("acme", Witnessed(2, b"b" * 32, 1))
    await witness.flush()
    vault.is_away = False
    await witness.close()
    assert await vault.witnessed("acme") == Witnessed(2, b"b" * 32, 1)
