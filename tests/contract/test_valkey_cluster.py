"""The same promises on a real three-node cluster: slices spread over the nodes, all keys of a call in one slot."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from events.archive import Archive
from events.slices import SLICE_COUNT, slice_of, slice_tag
from events.store import EventStore
from events.valkey_client import CLUSTER_SCHEME, connect, execute
from events.valkey_store import ValkeyEventStore, _append_args
from serve.local_servers import LocalServer, valkey_spec
from serve.ports import free_ports
from tests.contract.archiving import ArchivingContract
from tests.contract.event_store import EventStoreContract, tenant
from tests.kit.factories import append_request

__all__ = ["tenant"]

NODES, SLOTS = 3, 16_384
PASSWORD = "cluster-password"


async def form_cluster(ports: list[int]) -> None:
    """Give each node its third of the slots, introduce them, and wait until they all agree."""
    clients = [connect(f"redis://:{PASSWORD}@127.0.0.1:{port}") for port in ports]
    bounds = [SLOTS * number // NODES for number in range(NODES + 1)]
    for number, client in enumerate(clients):
        await execute(client, "CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        if number:
            bus = (await execute(clients[0], "CONFIG", "GET", "cluster-port"))[1]
            await execute(client, "CLUSTER", "MEET", "127.0.0.1", ports[0], int(bus))
    async with asyncio.timeout(30):
        for client in clients:
            while not _agrees(str(await execute(client, "CLUSTER", "INFO"))):  # noqa: ASYNC110 - they only gossip
                await asyncio.sleep(0.05)  # each node tells its own view, and only when asked
            await client.aclose()


def _agrees(info: str) -> bool:
    return "cluster_state:ok" in info and f"cluster_known_nodes:{NODES}" in info


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("cluster")
    ports = free_ports(2 * NODES)
    with ExitStack() as stack:
        for number in range(NODES):
            more = f"cluster-enabled yes\ncluster-port {ports[NODES + number]}\nmasterauth {PASSWORD}\n"
            server = LocalServer(valkey_spec(directory / str(number), ports[number], PASSWORD, more))
            server.start()
            stack.callback(server.stop)
            server.wait_ready()
        asyncio.run(form_cluster(ports[:NODES]))
        yield f"{CLUSTER_SCHEME}://:{PASSWORD}@127.0.0.1:{ports[0]}"


class TestValkeyCluster(EventStoreContract, ArchivingContract):
    @pytest.fixture
    def archive(self, tmp_path: Path) -> Archive:
        return Archive(str(tmp_path / "archive"))

    @pytest.fixture
    async def store(self, cluster_url: str, archive: Archive) -> AsyncIterator[EventStore]:
        opened = ValkeyEventStore(connect(cluster_url), archive)
        await opened.open()
        yield opened
        await opened.close()


async def test_all_keys_of_a_call_lie_in_one_slot(cluster_url: str, tenant: str) -> None:
    """As the server itself sees them, and whatever function is called."""
    node = connect(cluster_url.replace(CLUSTER_SCHEME, "redis"))
    node.set_response_callback("COMMAND", lambda response, **_: response)  # its own knows no GETKEYS
    tag = slice_tag(slice_of(tenant))
    calls = [
        _append_args(append_request(tenant, epoch=1, events=40, commands=("a", "b"))),
        ["FCALL", "tenantry_v3_claim", 1, f"{tag}:meta:{tenant}", tenant],
        ["FCALL", "tenantry_v3_halt", 2, f"{tag}:meta:{tenant}", f"{tag}:timers", tenant, 1, "why"],
        ["FCALL", "tenantry_v3_set_timer", 2, f"{tag}:meta:{tenant}", f"{tag}:timers", tenant, 1, 5],
        ["FCALL", "tenantry_v3_trim", 3, *(f"{tag}:{kind}:{tenant}" for kind in ("log", "meta", "streams")), tenant, 1],
    ]
    for call, count in zip(calls, (7, 1, 2, 2, 3), strict=True):
        keys = await execute(node, "COMMAND", "GETKEYS", *call)
        assert len(keys) == count
        assert len({await execute(node, "CLUSTER", "KEYSLOT", key) for key in keys}) == 1
    await node.aclose()


async def test_slices_are_spread_over_all_nodes(cluster_url: str) -> None:
    client = connect(cluster_url)
    await client.initialize()
    slots = [client.keyslot(f"{slice_tag(number)}:log:x") for number in range(SLICE_COUNT)]  # type: ignore[union-attr]
    per_node = [sum(slot * NODES // SLOTS == node for slot in slots) for node in range(NODES)]
    assert min(per_node) > SLICE_COUNT // 6
    await client.aclose()
