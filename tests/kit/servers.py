"""Real servers for tests, each on a free loopback port with a directory of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from serve.local_servers import LocalServer, free_port, nats_spec, valkey_spec

USER, PASSWORD = "tenantry", "test-password"


class Servers(msgspec.Struct, frozen=True):
    valkey: LocalServer
    nats: LocalServer

    @property
    def valkey_url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.valkey.spec.port}"

    @property
    def nats_url(self) -> str:
        return f"nats://{USER}:{PASSWORD}@127.0.0.1:{self.nats.spec.port}"


@contextmanager
def running_servers(directory: Path) -> Iterator[Servers]:
    servers = Servers(
        LocalServer(valkey_spec(directory, free_port(), PASSWORD)),
        LocalServer(nats_spec(directory, free_port(), USER, PASSWORD)),
    )
    started: list[LocalServer] = []
    try:
        for server in (servers.valkey, servers.nats):
            server.start()
            started.append(server)
        for server in started:
            server.wait_ready()
        yield servers
    finally:
        for server in started:
            server.stop()
