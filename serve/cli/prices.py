"""``tenantry price``: a tenant's own prices."""

import re
from typing import Annotated, Any

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, say, table
from serve.client import AdminClient

prices = typer.Typer(no_args_is_help=True, help="Show and set a tenant's own prices; others are in the models file.")
_PRICE = re.compile(r"(.+)=([0-9.]+)/([0-9.]+)")


@prices.command("set")
def set_prices(
    tenant: TenantArgument,
    table_: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL=IN/OUT]...", help="USD per million tokens, such as small=0.10/0.40. None: list prices."
        ),
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Replace the tenant's price table: its next version. Calls under way keep the price they were reserved at."""
    body = {"prices": [_price(text) for text in table_ or []]}
    _show(AdminClient.find(data_dir).call("PUT", f"/tenants/{tenant}/prices", body), as_json)


@prices.command("show")
def show_prices(
    tenant: TenantArgument,
    at: Annotated[int | None, typer.Option(min=1, help="As they were at this position of its log.")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show the tenant's own prices: now, or at a past position of its log."""
    query = {} if at is None else {"at": at}
    _show(AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/prices", **query), as_json)


def _price(text: str) -> dict[str, str]:
    match = _PRICE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"expected such as small=0.10/0.40, got {text!r}")
    return {"model": match[1], "input_usd_per_mtok": match[2], "output_usd_per_mtok": match[3]}


def _show(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(shown)
        return
    say(f"version {shown['version']}")
    columns = ["model", "input_usd_per_mtok", "output_usd_per_mtok"]
    table(["model", "input USD/Mtok", "output USD/Mtok"], [[row[c] for c in columns] for row in shown["prices"]])
