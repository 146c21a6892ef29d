"""``tenantry call``: calls that were booked at their maximum because nobody knew what they used."""

from typing import Annotated

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, show, table, time_text
from serve.client import AdminClient

calls = typer.Typer(no_args_is_help=True, help="List calls of unknown usage, and credit what they did not cost.")


@calls.command("unknown")
def list_unknown(
    tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """List calls that were booked at their maximum: their gateway died, or their provider never said."""
    rows = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/calls/unknown")["data"]
    if as_json:
        print_json(rows)
    else:
        cells = [[r["call_id"], r["key_id"], r["model"], r["booked_usd"], time_text(r["reserved_us"])] for r in rows]
        table(["call id", "key id", "model", "booked usd", "reserved"], cells)


@calls.command("credit")
def credit(
    tenant: TenantArgument,
    call_id: Annotated[str, typer.Argument(help="As `tenantry call unknown` shows it.", show_default=False)],
    cost: Annotated[str, typer.Argument(help="USD: what it really cost, as the provider's bill says.")],
    reason: Annotated[str, typer.Option(help="Kept in the log.")] = "provider's bill",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Correct such a call, once: the difference goes back to the budgets that paid it."""
    body = {"cost_usd": cost, "reason": reason}
    show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/calls/{call_id}/credit", body), as_json)
