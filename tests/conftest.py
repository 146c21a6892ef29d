"""Fixtures that several rooms of the tests use."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from hypothesis import HealthCheck, settings

from events.keys import Keys, parse_master_keys
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.valkey_vault import ValkeyVault
from tests.kit.servers import MASTER_KEY, Servers, running_servers

# the contract suites are modules of their own, which pytest does not take for tests
pytest.register_assert_rewrite("tests.contract")

settings.register_profile(
    "tenantry", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no defect of the code
settings.load_profile("tenantry")


@pytest.fixture(scope="session")
def started_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with running_servers(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture(scope="module")
def servers(started_servers: Servers) -> Servers:
    """One Valkey, one vault and one NATS for the whole run, with nothing in the former two when a module begins: whoever
    looks through all tenants would look through those of every test before. Within a module tests keep apart by names.
    """
    for url in (started_servers.valkey_url, started_servers.vault_url):
        with redis.Redis.from_url(url) as client:
            client.flushall()
    return started_servers


@pytest.fixture
async def vault(servers: Servers) -> AsyncIterator[ValkeyVault]:
    opened = ValkeyVault(connect(servers.vault_url))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def keys(vault: ValkeyVault) -> Keys:
    return Keys(vault, parse_master_keys(MASTER_KEY))


@pytest.fixture
async def valkey_store(servers: Servers) -> AsyncIterator[ValkeyEventStore]:
    store = ValkeyEventStore(connect(servers.valkey_url))
    await store.open()
    yield store
    await store.close()
