"""``tenantry budget``: what a tenant, a key or a user may spend."""

from typing import Annotated

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, show, table
from serve.cli.subjects import KeyOption, UserOption, path_of
from serve.client import AdminClient

budgets = typer.Typer(no_args_is_help=True, help="Set, list and remove budgets of a tenant, its keys and its users.")


@budgets.command("set")
def set_budget(
    tenant: TenantArgument,
    limit: Annotated[str | None, typer.Option(help="USD: what might exceed it is refused.")] = None,
    soft: Annotated[str | None, typer.Option(help="USD: once it is spent, answers and the log warn.")] = None,
    window: Annotated[str, typer.Option(help="day, week, month (UTC) or total")] = "month",
    key: KeyOption = "",
    user: UserOption = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set a budget: a limit, a soft limit, or both."""
    body = {"limit_usd": limit, "soft_limit_usd": soft, "window": window}
    show(AdminClient.find(data_dir).call("PUT", f"{path_of(tenant, key, user)}/budget", body), as_json)


@budgets.command("list")
def list_budgets(
    tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """List a tenant's budgets with what is spent and reserved."""
    rows = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/budgets")["data"]
    if as_json:
        print_json(rows)
        return
    columns = ["subject", "window", "limit_usd", "soft_limit_usd", "spent_usd", "reserved_usd"]
    cells = [["-" if row[column] is None else row[column] for column in columns] for row in rows]
    table([column.replace("_", " ") for column in columns], cells)


@budgets.command("remove")
def remove_budget(
    tenant: TenantArgument,
    key: KeyOption = "",
    user: UserOption = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Remove a budget: nothing is refused or warned of any more."""
    show(AdminClient.find(data_dir).call("DELETE", f"{path_of(tenant, key, user)}/budget"), as_json)
