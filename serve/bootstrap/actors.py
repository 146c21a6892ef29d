"""The actors of a deployment, each with how its process opens its connections."""

from collections.abc import Callable

from actors.archiver_actor import start_archiver
from actors.relay_actor import start_relays
from actors.run.runner_actor import start_runners
from actors.shard import Limits
from actors.supervision.root import start_root_supervisor
from actors.supervision.shared_actor import start_shared_supervisors
from events.slices import SLICE_COUNT
from projections.actor import start_projections
from serve.bootstrap.connections import open_archiver, open_connections, open_models, open_relay, open_shard
from serve.bootstrap.runner import open_runner
from serve.settings import Settings

_DAY_US = 24 * 3600 * 1_000_000


def start_actors(settings: Settings) -> Callable[[], None]:
    """Start the actors of a deployment on the Ray cluster this process is connected to, or find those that run. The
    returned function waits until tenants can be activated.
    """
    limits = Limits(settings.idle_after_s, settings.active_tenants_max)
    wait_until_listening = start_root_supervisor(open_shard, settings.pool_shards, limits)
    start_relays(open_relay, settings.relays)
    start_runners(open_runner, settings.runners)
    start_shared_supervisors(open_connections)
    start_projections(open_connections, open_models, range(SLICE_COUNT), round(settings.runs_listed_days * _DAY_US))
    if settings.archive_url:
        start_archiver(open_archiver, settings.archive_period_s)
    return wait_until_listening
