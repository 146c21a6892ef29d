"""``tenantry usage`` and ``tenantry spend``."""

from typing import Annotated

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, table
from serve.client import AdminClient


def usage(tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Show what a tenant has used: requests, tokens and cost, by model and day."""
    used = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/usage")
    if as_json:
        print_json(used)
        return
    columns = ["requests", "failed", "unknown", "input_tokens", "output_tokens", "cost_usd"]
    rows = [[row["day"], row["model"], *(str(row[c]) for c in columns)] for row in used["by_day"]]
    rows.append(["total", "", *(str(used[column]) for column in columns)])
    table(["day (UTC)", "model", *(column.replace("_", " ") for column in columns)], rows)


def spend(
    tenant: TenantArgument,
    by: Annotated[str, typer.Option(help="key, user, model or tag (the metadata of requests)")] = "key",
    first_day: Annotated[str, typer.Option("--from", help="First day (UTC), such as 2026-11-01.")] = "",
    last_day: Annotated[str, typer.Option("--to", help="Last day (UTC), included.")] = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show what a tenant has spent by key, user, model or tag, the dearest first."""
    days = {name: day for name, day in (("from", first_day), ("to", last_day)) if day}
    spent = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/spend", by=by, **days)
    if as_json:
        print_json(spent)
        return
    columns = ["requests", "failed", "unknown", "input_tokens", "output_tokens", "cost_usd"]
    rows = [[row["name"], *(str(row[column]) for column in columns)] for row in spent["data"]]
    table([by, *(column.replace("_", " ") for column in columns)], rows)
