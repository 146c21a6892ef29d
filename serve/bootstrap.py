"""The only place that opens connections. Every process of a deployment comes here with the settings it inherited."""

import os
import socket
from collections.abc import Callable

from actors.archiver_actor import start_archiver
from actors.relay_actor import RelayConnections, start_relays
from actors.run.runner import Handler, call_function
from actors.run.runner_actor import RunnerConnections, start_runners
from actors.shard import Limits
from actors.supervision.clients import Resilience
from actors.supervision.root import start_root_supervisor
from actors.supervision.shared_actor import start_shared_supervisors
from actors.tools.model import ModelClient
from actors.tools.registry import Registry, shared_pipelines
from actors.tools.runner import Tools
from events import failpoints, tracing
from events.archive import Archive, Policy
from events.archiver import Archiver
from events.ask import Asker
from events.bus import Bus
from events.deltas import Deltas
from events.inbox import Inbox
from events.keys import Keys, parse_master_keys
from events.objects import Objects
from events.outcomes import Outcomes
from events.process import Connections, end_process
from events.slices import SLICE_COUNT
from events.tracing import Tracer
from events.valkey_store import ValkeyEventStore, connect
from events.valkey_vault import ValkeyVault
from events.vault import Vault
from projections.actor import start_projections
from projections.runner import ReadModels
from serve.agent_turns import AgentTurns
from serve.answer_cache import TTL_MAX_S
from serve.booking import Bookings
from serve.doors import Doors
from serve.idempotency import CLAIM_S, KEEP_S
from serve.kept import CachedAnswers, KeyedAnswers
from serve.model_steps import ModelSteps
from serve.observe import logs
from serve.routing import Routing
from serve.run_history import RunHistory
from serve.sagas import load_sagas
from serve.settings import Settings, SettingsError, tool_configs
from serve.steps import ToolSteps

# Above the longest blocking read, so that waiting for events is not taken for a dead server.
_SOCKET_TIMEOUT_S = 8.0


async def open_store(settings: Settings) -> ValkeyEventStore:
    archive = Archive(settings.archive_url) if settings.archive_url else None
    store = ValkeyEventStore(connect(settings.valkey_url, timeout_s=_SOCKET_TIMEOUT_S), archive)
    await store.open()
    return store


async def open_vault(settings: Settings) -> ValkeyVault:
    vault = ValkeyVault(connect(settings.vault_url, timeout_s=_SOCKET_TIMEOUT_S))
    await vault.open()
    return vault


def keys_of(settings: Settings, vault: Vault) -> Keys:
    return Keys(vault, parse_master_keys(settings.master_key))


async def open_read_models(settings: Settings, keys: Keys) -> ReadModels:
    models = ReadModels(connect(settings.valkey_url, db=settings.reads_db, timeout_s=_SOCKET_TIMEOUT_S), keys)
    await models.open()
    return models


def open_doors(settings: Settings) -> Doors:
    return Doors(connect(settings.valkey_url, db=settings.reads_db))


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


async def open_runner(name: str) -> RunnerConnections:
    settings = Settings.from_environment()
    load_sagas(settings.sagas)
    vault = await open_vault(settings)
    bus, keys = await open_bus(settings, name), keys_of(settings, vault)
    store, resilience, asker = await open_store(settings), await open_resilience(bus, name), Asker(bus)
    registry = Registry(tool_configs(settings.models), build=shared_pipelines(resilience))
    tools, objects = Tools(asker, registry), open_objects(settings, keys)
    turns = AgentTurns(RunHistory(store, keys).run, objects, registry)
    models = {model.name: model for model in settings.models.models}
    bookings, model_client = Bookings(asker, models.values(), settings.call_timeout_s), ModelClient(None)
    routing = Routing(settings.models, resilience)
    model_steps = ModelSteps(models, bookings, model_client, routing, turns, Deltas(bus), keys)
    handlers: dict[str, Handler] = {
        "function": call_function,
        "tool": ToolSteps(tools, turns),
        "model": model_steps,
    }

    async def close() -> None:
        await tools.close()
        await bookings.drain()
        await model_client.close()
        await store.close()
        await resilience.close()
        await bus.close()
        await vault.close()

    return RunnerConnections(bus, keys, objects, handlers, settings.steps_at_once, close)


async def open_resilience(bus: Bus, name: str) -> Resilience:
    resilience = Resilience(bus, f"{name}-{socket.gethostname()}-{os.getpid()}")
    await resilience.start()
    return resilience


def open_objects(settings: Settings, keys: Keys) -> Objects:
    return Objects(settings.objects_url, keys)


def open_keyed_answers(settings: Settings) -> KeyedAnswers:
    client = connect(settings.valkey_url, timeout_s=_SOCKET_TIMEOUT_S)
    return KeyedAnswers(client, bytes_max=settings.answers_bytes_max, keep_ms=int(1000 * (KEEP_S + CLAIM_S)))


def open_cached_answers(settings: Settings) -> CachedAnswers:
    client = connect(settings.valkey_url, db=settings.reads_db, timeout_s=_SOCKET_TIMEOUT_S)
    return CachedAnswers(client, bytes_max=settings.cache_bytes_max, keep_ms=1000 * TTL_MAX_S)


def open_outcomes(settings: Settings) -> Outcomes:
    return Outcomes(connect(settings.valkey_url, timeout_s=_SOCKET_TIMEOUT_S))


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


def start_actors(settings: Settings) -> Callable[[], None]:
    """Start the actors of a deployment on the Ray cluster this process is connected to, or find those that run. The
    returned function waits until tenants can be activated.
    """
    limits = Limits(settings.idle_after_s, settings.active_tenants_max)
    wait_until_listening = start_root_supervisor(open_shard, settings.pool_shards, limits)
    start_relays(open_relay, settings.relays)
    start_runners(open_runner, settings.runners)
    start_shared_supervisors(open_connections)
    start_projections(open_connections, open_models, range(SLICE_COUNT))
    if settings.archive_url:
        start_archiver(open_archiver, settings.archive_period_s)
    return wait_until_listening
