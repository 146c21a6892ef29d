"""``tenantry deploy``: the platform on a Ray cluster that runs by itself. What it starts stays when this process ends."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from actors.supervision.homes import is_tenant_actor
from events.errors import PlatformError
from serve import ray_runtime
from serve.edge import serve_environment
from serve.settings import Settings, SettingsError, load_models, tool_configs

log = logging.getLogger(__name__)

_END_TIMEOUT_S = 30.0

Say = Callable[[str], None]


class Deployment(msgspec.Struct, frozen=True):
    """``address`` is the cluster's, as ``ray.init`` takes it. ``models_path`` stands for what TENANTRY_MODELS says."""

    address: str
    host: str
    port: int
    replicas: int
    models_path: Path | None = None


def settings_of(deployment: Deployment, environment: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """The settings, and those variables among them that the cluster's processes don't have by themselves.

    Raises:
        SettingsError: One is missing or can't be used.
    """
    own: dict[str, str] = {}
    if deployment.models_path is not None:
        models = load_models(deployment.models_path)
        tool_configs(models, str(deployment.models_path))
        own["TENANTRY_MODELS"] = models.model_dump_json()
    missing = [
        name
        for name in ("TENANTRY_NATS_URL", "TENANTRY_VALKEY_URL", "TENANTRY_VAULT_URL", "TENANTRY_ADMIN_KEY")
        if not environment.get(name)
    ]
    if missing:
        raise SettingsError(
            f"{', '.join(missing)} must be set where Ray is started on each node, and here: a job has what its node has"
        )
    return Settings.from_environment({**environment, **own}), own


def deploy(deployment: Deployment, say: Say) -> None:
    """Put the platform, or another version of it, onto the cluster. Over one that runs, its actors are followed by others:
    those of tenants first start, then take over from the ones before; gateways follow one by one.

    Raises:
        SettingsError: See ``settings_of``.
        ConnectionError: There is no such cluster.
    """
    settings, own = settings_of(deployment, os.environ)
    with _step(say, f"Ray at {deployment.address}"):
        ray_runtime.connect_ray(deployment.address, own)
    # these import ray.serve, which reads its environment then
    from actors.run.runner_actor import stop_runners  # noqa: PLC0415
    from actors.supervision.root import renew_tenant_actors  # noqa: PLC0415
    from serve import app  # noqa: PLC0415
    from serve.bootstrap.actors import start_actors  # noqa: PLC0415

    try:
        names = _names()
        tenants = [name for name in names if is_tenant_actor(name)]
        ray_runtime.start_serve(deployment.host, deployment.port)
        with _step(say, "the actors"):
            # tenants are served by theirs meanwhile; what the others have in hand comes again
            stop_runners()
            _end([name for name in names if name not in tenants])
            wait_for_actors = start_actors(settings)
            wait_for_actors()
        if tenants:
            with _step(say, f"{len(tenants)} actors of tenants, while they are used"):
                renew_tenant_actors(tenants)
        with _step(say, f"the gateway, {deployment.replicas} replicas"):
            app.deploy_gateway(deployment.port, host=deployment.host, replicas=deployment.replicas)
    finally:
        ray_runtime.stop_ray()
    say(f"Deployed: http://{deployment.host}:{deployment.port}/v1 on each node. It runs until `tenantry undeploy`.")


def undeploy(address: str, say: Say) -> None:
    """Take the platform off the cluster: requests under way are finished, tenants snapshot. All data stays where it is.

    Raises:
        ConnectionError: There is no such cluster.
    """
    with _step(say, f"Ray at {address}"):
        ray_runtime.connect_ray(address)
    from ray import serve as ray_serve  # noqa: PLC0415 - reads the environment

    from serve.app import APP_NAME  # noqa: PLC0415

    try:
        with _step(say, "the gateway"):
            if APP_NAME in ray_serve.status().applications:
                ray_serve.delete(APP_NAME)
        with _step(say, "the actors"):
            ray_runtime.stop_platform_actors()
            _end(_names())
    finally:
        ray_runtime.stop_ray()


def _names() -> list[str]:
    """Of the actors of the platform, if there is one."""
    import ray  # noqa: PLC0415 - reads the environment

    rows = ray.util.list_named_actors(all_namespaces=True)
    return [row["name"] for row in rows if row["namespace"] == ray_runtime.NAMESPACE]


def _end(names: Sequence[str]) -> None:
    """Returns when nobody goes by these names any more: who is created under one of them is another actor then."""
    import ray  # noqa: PLC0415 - reads the environment

    for name in names:
        try:
            ray.kill(ray.get_actor(name, namespace=ray_runtime.NAMESPACE))
        except ValueError:  # it ended by itself meanwhile
            log.debug("deploy.ended_before actor=%s", name)
    ends = time.monotonic() + _END_TIMEOUT_S
    while set(names) & set(_names()):
        if time.monotonic() > ends:
            raise PlatformError(f"Ray does not end {', '.join(names)}: try again")
        time.sleep(0.05)  # Ray has no event for the end of a named actor: its list of names can only be asked for


def ray_environment(run_dir: Path, metrics_port: int, fallback_port: int) -> dict[str, str]:
    """What `ray start` must have in its environment on each node, besides the settings: Serve behind the hardened HAProxy.

    Raises:
        PlatformError: The directory can't be used.
    """
    try:
        run_dir.mkdir(mode=0o700, exist_ok=True)
        found = run_dir.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PlatformError(f"{run_dir} must belong to this user alone: chmod 700, or name another with --run-dir")
        return ray_runtime.CLUSTER_ENVIRONMENT | serve_environment(run_dir, metrics_port, fallback_port)
    except (OSError, ValueError) as error:
        raise PlatformError(f"{error}: name another directory with --run-dir") from error


@contextmanager
def _step(say: Say, what: str) -> Iterator[None]:
    say(f"  … {what}")
    began = time.monotonic()
    yield
    say(f"  ✓ {what} ({time.monotonic() - began:.1f} s)")
