"""The local Ray of an embedded instance: on loopback, quiet, and without the parts that nothing here asks for.

``ray.init`` waits for an autoscaler, a log forwarder and a dashboard without pages, and looks for its own node once a
second: more than half of its time, and 270 MiB. It has no switch for them, so for the length of the call they are left
out by replacing the private functions listed in ``only_what_is_used``. Ray's version is pinned; a test starts it.
"""

import contextlib
import http.client
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.edge import STANDBY_HEADER

if TYPE_CHECKING:
    from ray.job_config import JobConfig
    from ray.serve import Application

log = logging.getLogger(__name__)

NAMESPACE = "tenantry"
_OBJECT_STORE_BYTES = 100 * 2**20  # the data does not go through it
_SHUTDOWN_TIMEOUT_S = 10.0
_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # an access log is a line per request

CLUSTER_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # said aloud, or Ray warns that it was not
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 by default, as for batch jobs: here the workers are the service
}
_ENVIRONMENT = CLUSTER_ENVIRONMENT | {
    # A misnomer: when off, a node's address is 127.0.0.1; when on, Ray turns 127.0.0.1 into a public address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Under `uv run` Ray would upload the working directory and build an environment for every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leaves CUDA_VISIBLE_DEVICES alone, and does not warn that it will
    "RAY_enable_metrics_collection": "0",  # the agent that would collect them is left out
}


def start_ray(run_dir: Path, environment: Mapping[str, str]) -> str:
    """Start a local cluster that ends with this process, and connect to it. Makes Ray's token file if there is none.

    Args:
        run_dir: A private directory with a short path (``serve.edge.RUN_DIR_CHARS_MAX``); logs and sockets go there.
        environment: For this process and every process of the cluster, see ``serve.edge.serve_environment``.

    Returns:
        The address for ``ray.init`` in other programs. They need ``RAY_AUTH_MODE=token`` and the same home directory.

    Raises:
        RuntimeError: Not the main thread, or ``ray.serve`` was imported before and has read its environment.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "the kernel ends Ray's servers with the thread that starts them: start Ray in the main thread"
        )
    serve_constants = sys.modules.get("ray.serve._private.constants")
    if serve_constants is not None and not serve_constants.RAY_SERVE_ENABLE_HA_PROXY:
        raise RuntimeError("ray.serve was imported before its environment was set: import it after start_ray")
    os.environ.update({**_ENVIRONMENT, **environment})
    _make_token()
    import ray  # noqa: PLC0415 - reads the environment

    _reread_environment()
    # The working directory comes first on every worker's path: a folder named `events` in it must not hide ours.
    with only_what_is_used(), _sigterm_kept(), contextlib.chdir(run_dir):
        ray.init(
            "local",
            namespace=NAMESPACE,
            num_cpus=_cpus(),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            job_config=_job_config(),
            _temp_dir=str(run_dir / "r"),
        )
    return _reachable(ray.get_runtime_context().gcs_address)


def connect_ray(address: str, environment: Mapping[str, str] | None = None) -> None:
    """Connect to a cluster that runs already, under the address that ``start_ray`` gave or any that Ray takes. What is
    started from here has the ``environment``, besides what its node has.
    """
    import ray  # noqa: PLC0415 - reads the environment
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # noqa: PLC0415

    if AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray does so by itself for "auto" only
        _reread_environment()
    with _sigterm_kept():
        ray.init(
            _reachable(address),
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
            job_config=_job_config(),
            runtime_env={"env_vars": dict(environment)} if environment else None,
        )


def run_application(
    application: "Application", name: str, *, host: str, port: int, ready_path: str, timeout_s: float = 60.0
) -> None:
    """Deploy at ``/``, and return when ``GET ready_path`` answers 200 at that address.

    ``serve.start`` and ``serve.run`` start proxies, then replicas, and look once a second. Here both start together
    and we look often: 1.6 s less on two cores. Where Serve runs already, its address stays what it is.

    Raises:
        RuntimeError: The deployment failed, for example in the application's constructor.
        RayError: A proxy failed, for example because the port is taken.
        TimeoutError: Neither an answer nor a failure in time.
    """
    import ray  # noqa: PLC0415 - reads the environment
    from ray import serve as ray_serve  # noqa: PLC0415
    from ray.serve._private.client import ServeControllerClient  # noqa: PLC0415
    from ray.serve.context import _set_global_client  # noqa: PLC0415

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    controller = start_serve(host, port)
    _set_global_client(ServeControllerClient(controller))  # type: ignore[no-untyped-call]
    proxies = [proxy.ready.remote() for proxy in dict(ray.get(controller.get_proxies.remote())).values()]
    target = ray_serve.RunTarget(application, name=name, route_prefix="/", logging_config=_QUIET)
    ray_serve.run_many([target], wait_for_applications_running=False)
    deadline = time.monotonic() + timeout_s
    while True:
        proxies = _still_starting(proxies)
        state = ray_serve.status().applications[name]
        if state.status == "RUNNING" and _answers(host, port, ready_path):  # until then the one before may answer
            return
        if state.status == "DEPLOY_FAILED":
            reasons = "; ".join(deployment.message for deployment in state.deployments.values())
            raise RuntimeError(f"Serve could not deploy {name!r}: {state.message} {reasons}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer from {name!r} at {host}:{port}{ready_path} in {timeout_s} s: {state}")
        time.sleep(0.03)  # Serve has no event for it: its status can only be asked for


def _still_starting(proxies: list[Any]) -> list[Any]:
    """Raises what went wrong in one. A proxy that Serve itself ended, because it was slow to start, is followed by another."""
    import ray  # noqa: PLC0415 - reads the environment
    from ray.exceptions import ActorDiedError  # noqa: PLC0415

    ended, starting = ray.wait(proxies, num_returns=len(proxies), timeout=0) if proxies else ([], [])
    for proxy in ended:
        try:
            ray.get(proxy)
        except ActorDiedError as error:
            log.warning("serve.proxy_started_again: %s", error)
    return starting


def start_serve(host: str, port: int) -> Any:
    """The handle of Serve's controller: of the one that runs, or of one that starts now, without waiting for it.

    Ask for it before other actors are started: replica and proxies only begin once the controller runs.
    """
    if (running := _serve_controller()) is not None:
        return running
    from ray.serve._private.default_impl import get_controller_impl  # noqa: PLC0415 - reads the environment
    from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions  # noqa: PLC0415
    from ray.serve.schema import LoggingConfig  # noqa: PLC0415

    return get_controller_impl().remote(
        http_options=HTTPOptions(host=host, port=port),
        grpc_options=gRPCOptions(),
        global_logging_config=LoggingConfig(**_QUIET),
        proxy_location=ProxyLocation.EveryNode,
        global_tracing_config=None,
    )


def _serve_controller() -> Any | None:
    import ray  # noqa: PLC0415 - reads the environment
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE  # noqa: PLC0415

    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None


def stop_ray(drain_timeout_s: float = 30.0) -> None:
    """Leave Ray. What ``start_ray`` started stops: applications, as soon as requests under way are done; Serve;
    runners and tenants' actors, as soon as what they accepted is done; Ray.

    A cluster of ``connect_ray`` goes on, with all that was deployed to it.
    """
    import ray  # noqa: PLC0415 - reads the environment

    node: Any = ray._private.worker._global_node  # noqa: SLF001
    try:
        if node is not None and node.head:
            _stop_serve(drain_timeout_s)
            stop_platform_actors()
    finally:
        ray.shutdown(wait_for_processes=True)


def stop_platform_actors() -> None:
    """Have runners and tenants' actors finish what they accepted; they take nothing more."""
    from actors.run.runner_actor import stop_runners  # noqa: PLC0415 - Ray reads the environment
    from actors.supervision.root import stop_tenant_actors  # noqa: PLC0415 - likewise

    stop_runners()
    stop_tenant_actors()


def _stop_serve(timeout_s: float) -> None:
    import ray  # noqa: PLC0415 - reads the environment
    from ray import serve as ray_serve  # noqa: PLC0415
    from ray.exceptions import GetTimeoutError, RayActorError  # noqa: PLC0415
    from ray.serve.context import _set_global_client  # noqa: PLC0415

    controller = _serve_controller()
    if controller is None:
        return
    # A shutdown of Serve alone kills HAProxy at once, and with it every request that a replica waits for.
    deadline = time.monotonic() + timeout_s
    for name in ray_serve.status().applications:
        ray_serve.delete(name, _blocking=False)
    while ray_serve.status().applications:
        if time.monotonic() > deadline:
            log.warning("serve.requests_cut after_s=%s", timeout_s)
            break
        time.sleep(0.03)  # Serve has no event for it: its status can only be asked for
    try:
        # serve.shutdown makes this call with endless retries, and Ray reports its end as a failure on the terminal
        ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=_SHUTDOWN_TIMEOUT_S)
    except RayActorError:
        log.debug("serve.stopped")  # the controller ends last, and the call with it
    except GetTimeoutError:
        log.warning("serve.stop_timed_out after_s=%s", _SHUTDOWN_TIMEOUT_S)
    _set_global_client(None)  # type: ignore[no-untyped-call]


def _answers(host: str, port: int, path: str) -> bool:
    """Whether a replica does. HAProxy knows the proxy that stands by for it some 0.6 s before."""
    connection = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port, timeout=2)  # noqa: S104
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status == 200 and response.getheader(STANDBY_HEADER) is None
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reachable(address: str) -> str:
    """Loopback spelled so that Ray 2.60 leaves it alone: ``127.0.0.1`` it would look up at a public address."""
    host, _, port = address.rpartition(":")
    return f"[::ffff:127.0.0.1]:{port}" if host in {"127.0.0.1", "localhost"} else address


def _cpus() -> int:
    """How many workers Ray starts ahead. Our actors take no CPU, so this limits nothing."""
    return min(8, max(4, os.cpu_count() or 1))


def _job_config() -> "JobConfig":
    """Has workers import the packages this process runs, wherever they are."""
    from ray.job_config import JobConfig  # noqa: PLC0415 - reads the environment

    root = Path(__file__).resolve().parents[1]
    # site-packages is on their path already, and must stay behind the standard library
    return JobConfig(_py_driver_sys_path=[] if root.name == "site-packages" else [str(root)])


def _make_token() -> None:
    """Ray would write it readable by everyone that the umask lets in."""
    path = Path.home() / ".ray" / "auth_token"
    if path.exists() or "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(secrets.token_hex(32))
    with contextlib.suppress(FileExistsError):  # another process was first
        path.hardlink_to(draft)
    draft.unlink()


def _reread_environment() -> None:
    """Ray may have been imported, and have read its environment, long before."""
    from ray._private import ray_constants  # noqa: PLC0415
    from ray._raylet import Config  # type: ignore[attr-defined]  # noqa: PLC0415

    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0"
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV") != "0"
    Config.initialize("")


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """``ray.init`` puts its own handler in place of the caller's."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def only_what_is_used() -> Iterator[None]:
    from ray._private import services, utils  # noqa: PLC0415 - reads the environment
    from ray._private.node import Node  # noqa: PLC0415

    def nothing(*_: Any, **__: Any) -> None: ...

    with contextlib.ExitStack() as originals:
        for owner, name, replacement in (
            (Node, "start_monitor", nothing),  # the autoscaler
            (Node, "start_log_monitor", nothing),  # reads every log file for drivers that want them
            (services, "start_api_server", lambda *_, **__: ("", None)),  # serves no page without the dashboard
            # The node's agent keeps its ports for the cluster, and leaves out an HTTP server on a fixed port.
            (utils, "get_dashboard_dependency_error", lambda: ImportError("left out")),
            (services, "get_node", _looked_for_often(services.get_node)),
        ):
            originals.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield


def _looked_for_often(get_node: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    """The original sleeps a second between two looks."""
    from ray import NodeID  # noqa: PLC0415 - reads the environment
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # noqa: PLC0415

    def look(gcs_address: str, node_id: str) -> Any:
        client, deadline = GcsClient(address=gcs_address), time.monotonic() + 30.0
        while NodeID.from_hex(node_id) not in client.get_all_node_info() and time.monotonic() < deadline:
            time.sleep(0.02)  # Ray has no event for a node that joins: its list can only be asked for
        return get_node(gcs_address, node_id)

    return look
