"""What all processes connect to, and what each kind of actor works with."""

import os
import socket

from actors.relay_actor import RelayConnections
from actors.supervision.clients import Resilience
from events import failpoints, tracing
from events.archive import Archive, Policy
from events.archiver import Archiver
from events.bus import Bus
from events.inbox import Inbox
from events.keys import Keys, parse_master_keys
from events.objects import Objects
from events.outcomes import Outcomes
from events.process import Connections, end_process
from events.tracing import Tracer
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.valkey_vault import ValkeyVault
from events.vault import Vault
from projections.runner import ReadModels
from serve.observe import logs
from serve.sagas import load_sagas
from serve.settings import Settings, SettingsError

# Above the longest blocking read, so that waiting for events is not taken for a dead server.
SOCKET_TIMEOUT_S = 8.0


async def open_store(settings: Settings) -> ValkeyEventStore:
    archive = Archive(settings.archive_url) if settings.archive_url else None
    store = ValkeyEventStore(connect(settings.valkey_url, timeout_s=SOCKET_TIMEOUT_S), archive)
    await store.open()
    return store


async def open_vault(settings: Settings) -> ValkeyVault:
    vault = ValkeyVault(connect(settings.vault_url, timeout_s=SOCKET_TIMEOUT_S))
    await vault.open()
    return vault


def keys_of(settings: Settings, vault: Vault) -> Keys:
    return Keys(vault, parse_master_keys(settings.master_key))


async def open_read_models(settings: Settings, keys: Keys) -> ReadModels:
    models = ReadModels(connect(settings.valkey_url, db=settings.reads_db, timeout_s=SOCKET_TIMEOUT_S), keys)
    await models.open()
    return models


async def open_bus(settings: Settings, name: str) -> Bus:
    """Every process of the platform has one, so this is also where logs, traces and failpoints are set up."""
    logs.configure(settings.log_format, settings.log_level, settings.secrets())
    if settings.traces_url and tracing.tracer is None:
        tracing.tracer = _tracer(settings, name)
    if settings.failpoints:
        failpoints.arm(settings.failpoints, settings.failpoints_seed)
    return await Bus.connect(settings.nats_url, name, end_process)


def _tracer(settings: Settings, process: str) -> Tracer:
    try:
        from serve.observe.traces import exporting  # noqa: PLC0415 - OpenTelemetry is loaded by who wants it only
    except ImportError as error:
        raise SettingsError(f"TENANTRY_TRACES_URL needs the extra: pip install 'tenantry[otel]' ({error})") from error
    return exporting(settings.traces_url, settings.traces_sample, process)


async def open_connections(name: str) -> Connections:
    settings = Settings.from_environment()
    keys = keys_of(settings, await open_vault(settings))
    return Connections(await open_store(settings), await open_bus(settings, name), keys)


async def open_shard(name: str) -> Connections:
    """What tenants' actors work with: they decide about runs, so they know the sagas."""
    load_sagas(Settings.from_environment().sagas)
    return await open_connections(name)


async def open_resilience(bus: Bus, name: str) -> Resilience:
    resilience = Resilience(bus, f"{name}-{socket.gethostname()}-{os.getpid()}")
    await resilience.start()
    return resilience


def open_objects(settings: Settings, keys: Keys) -> Objects:
    return Objects(settings.objects_url, keys)


def open_outcomes(settings: Settings) -> Outcomes:
    return Outcomes(connect(settings.valkey_url, timeout_s=SOCKET_TIMEOUT_S))


async def open_relay(name: str) -> RelayConnections:
    settings = Settings.from_environment()
    bus = await open_bus(settings, name)
    inbox = Inbox(bus, settings.tell_queue_max)
    return RelayConnections(await open_store(settings), bus, inbox, open_outcomes(settings))


async def open_models(keys: Keys) -> ReadModels:
    return await open_read_models(Settings.from_environment(), keys)


async def open_archiver() -> Archiver:
    settings = Settings.from_environment()
    policy = Policy(settings.archive_keep_events, settings.archive_least_events)
    return Archiver(await open_store(settings), Archive(settings.archive_url), policy)
