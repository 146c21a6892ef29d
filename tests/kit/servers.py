"""Real servers for tests, each on a free loopback port with a directory of its own."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from events.keys import Keys, parse_master_keys
from events.memory_vault import MemoryVault
from events.valkey_client import connect
from events.valkey_vault import ValkeyVault
from serve.local_servers import LocalServer, nats_spec, valkey_spec
from serve.ports import free_port
from serve.settings import Settings

USER, PASSWORD = "tenantry", "test-password"
_RESTART_TIMEOUT_S = 30.0
OLD_MASTER_KEY = "YW4gb2xkZXIga2V5IG9mIHRoaXJ0eS10d28gYnl0ZXM="
MASTER_KEY = "bWFzdGVyIGtleSBvZiB0aGlydHktdHdvIGJ5dGVzISE="


class Servers(msgspec.Struct, frozen=True):
    valkey: LocalServer
    nats: LocalServer
    vault: LocalServer

    @property
    def valkey_url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.valkey.spec.port}"

    @property
    def vault_url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.vault.spec.port}"

    @property
    def nats_url(self) -> str:
        return f"nats://{USER}:{PASSWORD}@127.0.0.1:{self.nats.spec.port}"

    def settings(self, admin_key: str, **more: Any) -> Settings:
        """Of a deployment on these servers."""
        return Settings(
            nats_url=self.nats_url,
            valkey_url=self.valkey_url,
            vault_url=self.vault_url,
            master_key=MASTER_KEY,
            admin_key=admin_key,
            pepper="p" * 48,
            **more,
        )


def kill_and_wait(server: LocalServer) -> None:
    """SIGKILL; returns when its successor, which its watcher starts, is ready."""
    killed, ends = server.pid, time.monotonic() + _RESTART_TIMEOUT_S
    os.kill(killed, signal.SIGKILL)
    while server.pid == killed:
        assert time.monotonic() < ends, f"{server.spec.name} was not started again"
        time.sleep(0.01)  # the watcher's thread does it
    server.wait_ready(_RESTART_TIMEOUT_S)


@contextmanager
def running_servers(directory: Path) -> Iterator[Servers]:
    servers = Servers(
        LocalServer(valkey_spec(directory, free_port(), PASSWORD)),
        LocalServer(nats_spec(directory, free_port(), USER, PASSWORD)),
        LocalServer(valkey_spec(directory, free_port(), PASSWORD, name="vault")),
    )
    started: list[LocalServer] = []
    try:
        for server in (servers.valkey, servers.nats, servers.vault):
            server.start()
            started.append(server)
        for server in started:
            server.wait_ready()
        yield servers
    finally:
        for server in started:
            server.stop()


def keys_in_memory() -> Keys:
    """A vault of a test's own, gone with it."""
    return Keys(MemoryVault(), parse_master_keys(MASTER_KEY))


async def open_vault(url: str) -> tuple[ValkeyVault, Keys]:
    """The vault, to be closed, and the keys in it."""
    vault = ValkeyVault(connect(url))
    await vault.open()
    return vault, Keys(vault, parse_master_keys(MASTER_KEY))
