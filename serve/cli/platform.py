"""``tenantry up`` and ``tenantry doctor``: the platform itself."""

from pathlib import Path
from typing import Annotated

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from serve.cli.output import print_json, say, table
from serve.client import AdminClient


def up(
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="HTTP port on 127.0.0.1. [default: a free one]")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write base_url, keys and addresses here as JSON when ready.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="YAML file that says which models there are and who serves them.")
    ] = None,
) -> None:
    """Run the platform on this machine until Ctrl-C.

    Starts nats-server, valkey-server, Ray, the gateway and, where the extra `local` is installed and no other model is
    named, a small local model. Ends exactly what it started. TENANTRY_NATS_URL, TENANTRY_VALKEY_URL and
    TENANTRY_RAY_ADDRESS name servers of yours to use instead.
    """
    from serve import platform  # noqa: PLC0415 - Ray's environment must be set before Ray is imported

    say(f"Starting Tenantry in {data_dir} …")
    platform.run(platform.Options(data_dir, port, ready_file, models), say)


def doctor(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Examine the running platform: each line is ok, or says what to do."""
    report = AdminClient.find(data_dir).call("GET", "/doctor")
    if as_json:
        print_json(report)
    else:
        for finding in report["findings"]:
            print(f"{'ok  ' if finding['ok'] else 'FAIL'}  {finding['name']:<13} {finding['detail']}")
    if not report["ok"]:
        raise typer.Exit(1)


def gateways(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List the addresses of the gateway replicas: each listens on a port of its own, beside Serve's.

    Put a load balancer in front of these for throughput; each serves all of the API. The list follows Serve's scaling.
    """
    rows = AdminClient.find(data_dir).call("GET", "/gateways")["data"]
    if as_json:
        print_json(rows)
    else:
        table(["url", "replica"], [[row["url"], row["replica"]] for row in rows])
