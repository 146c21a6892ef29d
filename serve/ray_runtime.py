"""The local Ray of an embedded instance: on loopback, quiet, and without the parts that nothing here asks for.

``ray.init`` waits for an autoscaler monitor, a log forwarder and a dashboard that stays empty, and looks for its own node
once a second: together half of its time and 270 MiB. It has no switch for them, so they are left out by replacing, for
the length of the call, the four private functions named in ``_only_what_is_used``.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

NAMESPACE = "tenantry"
_OBJECT_STORE_BYTES = 100 * 2**20  # we put nothing in it; a small one is mapped and zeroed sooner
_STOP_TIMEOUT_S = 15.0

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # explicit: else Ray warns that it turned it on
    "RAY_USAGE_STATS_ENABLED": "0",
    # A misnomer: off, a node's address is 127.0.0.1; on, Ray turns even an explicit 127.0.0.1 into a public address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Under `uv run` Ray would upload the working directory and build an environment for every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES alone, and say nothing about it
    "RAY_enable_metrics_collection": "0",  # no agent collects them, see _only_what_is_used
    # 15 by default, as if workers were batch jobs: here they are the service.
    "RAY_worker_niceness": "0",
}


def start_ray(run_dir: Path, environment: Mapping[str, str]) -> str:
    """Start a local cluster that ends with this process, and connect to it. Call it in the main thread.

    The kernel ends Ray's servers with the *thread* that started them. ``environment`` (see ``serve.edge``) goes to this
    process too, since every process of the cluster inherits it. Ray's token is ``~/.ray/auth_token``, made if missing.

    Args:
        run_dir: A private directory with a short path (``serve.edge.RUN_DIR_CHARS_MAX``); logs and sockets go there.
        environment: Added to that of every process of the cluster.

    Returns:
        The address for ``ray.init`` in other programs, which need ``RAY_AUTH_MODE=token`` and the same home directory.

    Raises:
        RuntimeError: Not the main thread, or ``ray.serve`` was imported first and has read other settings.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("Ray's servers end with the thread that starts them: start it in the main thread")
    if "ray.serve" in sys.modules and any(os.environ.get(name) != value for name, value in environment.items()):
        raise RuntimeError("ray.serve was imported before its environment was set: import it after start_ray")
    os.environ.update(_ENVIRONMENT)
    os.environ.update(environment)
    import ray  # noqa: PLC0415 - it reads the environment as it is imported

    _reread_environment()
    # Ray puts the working directory first on the workers' path: someone's `events` folder there must not replace ours.
    with _only_what_is_used(), _default_signals_kept(), contextlib.chdir(run_dir):
        context = ray.init(
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
    _quieten_serve()
    return _reachable(context.address_info["gcs_address"])


def connect_ray(address: str) -> None:
    """Connect to a cluster that runs already; ``ray.shutdown`` then only disconnects."""
    import ray  # noqa: PLC0415 - as above

    with _default_signals_kept():
        ray.init(
            _reachable(address),
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
            job_config=_job_config(),
        )
    _quieten_serve()


def stop_ray() -> None:
    """Stop what ``start_ray`` started: Serve first, so that requests under way finish, then every process of Ray."""
    import ray  # noqa: PLC0415 - as above

    if not ray.is_initialized():
        return
    try:
        _stop_serve()
    finally:
        ray.shutdown(wait_for_processes=True)


def _stop_serve() -> None:
    import ray  # noqa: PLC0415 - as above
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE  # noqa: PLC0415

    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return
    with contextlib.suppress(ray.exceptions.RayActorError):  # the call ends when the controller does
        # serve.shutdown makes the same call with endless retries, and Ray reports each as a failure on the terminal
        ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=_STOP_TIMEOUT_S)
