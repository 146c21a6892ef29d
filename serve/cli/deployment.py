"""``tenantry deploy`` and its like: the platform on a Ray cluster that runs by itself."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from serve.cli.nodes import nodes
from serve.cli.output import say

AddressOption = Annotated[
    str, typer.Option(envvar="RAY_ADDRESS", help="The Ray cluster: HOST:PORT, or auto for the one of this machine.")
]

_RUN_DIR = Path(f"/tmp/tenantry-{os.getuid()}")  # noqa: S108 - short, and refused where it is another user's


def deploy(
    address: AddressOption = "auto",
    host: Annotated[str, typer.Option(help="Where Serve listens on each node; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port on each node.")] = 8000,
    replicas: Annotated[
        int, typer.Option(min=1, help="Gateways. Each is a process; a core each is a good number.")
    ] = 1,
    models: Annotated[
        Path | None, typer.Option(help="YAML file of models and tools. [default: TENANTRY_MODELS]")
    ] = None,
) -> None:
    """Put the platform onto a Ray cluster, from one of its nodes or as a job, and return when it answers.

    ray job submit -- tenantry deploy --host 0.0.0.0 --replicas 4

    The cluster's processes have the settings of the environment that Ray was started with on their node; see `tenantry node
    env` for what else belongs there. Over a platform that runs this is an upgrade: tenants' actors
    start anew beside the old ones and take over while they are used; no command is lost. TENANTRY_POOL_SHARDS is as it says from then on.
    """
    from serve import deployment  # noqa: PLC0415 - Ray's environment must be set before Ray is imported

    deployment.deploy(deployment.Deployment(address, host, port, replicas, models), say)


def undeploy(address: AddressOption = "auto") -> None:
    """Take the platform off a Ray cluster: requests under way are finished first. Ray goes on, and all data stays."""
    from serve import deployment  # noqa: PLC0415 - likewise

    deployment.undeploy(address, say)


@nodes.command("env")
def environment(
    run_dir: Annotated[
        Path, typer.Option(help="A directory of this user alone, with a short path, for HAProxy's sockets.")
    ] = _RUN_DIR,
    metrics_port: Annotated[int, typer.Option(help="HAProxy's own figures, on loopback.")] = 9101,
    fallback_port: Annotated[int, typer.Option(help="Serve's proxy that stands by while no gateway is up.")] = 8500,
) -> None:
    """Print what Ray must have in its environment on this node, for a shell: eval "$(tenantry node env)" && ray start …

    Ray's token, Serve behind HAProxy, and what closes the holes of both. The settings (TENANTRY_…) come besides.
    """
    from serve import deployment  # noqa: PLC0415 - likewise

    for name, value in deployment.ray_environment(run_dir, metrics_port, fallback_port).items():
        print(f"export {name}={shlex.quote(value)}")
