"""``tenantry tool``: what runs can call outside of the platform."""

import json
import uuid
from typing import Annotated, Any

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, show, table
from serve.client import AdminClient

tools = typer.Typer(no_args_is_help=True, help="List tools, allow them to tenants, and try one.")

ToolArgument = Annotated[str, typer.Argument(help="As `tenantry tool list` shows it.", show_default=False)]


@tools.command("list")
def list_tools(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List the tools that the models file names."""
    rows = AdminClient.find(data_dir).call("GET", "/tools")["data"]
    if as_json:
        print_json(rows)
    else:
        cells = [
            [r["name"], r["adapter"], str(r["bulkhead"]), str(r["timeout_s"]), r["payloads"], r["description"]]
            for r in rows
        ]
        table(["name", "adapter", "bulkhead", "timeout s", "payloads", "description"], cells)


@tools.command("allow")
def allow_tools(
    tenant: TenantArgument,
    names: Annotated[
        list[str] | None, typer.Argument(help="All tools it may call; none forbids all.", show_default=False)
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set which tools a tenant may call: these and no others."""
    show(AdminClient.find(data_dir).call("PUT", f"/tenants/{tenant}/tools", {"allowed": names or []}), as_json)


@tools.command("call")
def call_tool(
    tenant: TenantArgument,
    name: ToolArgument,
    given: Annotated[str, typer.Option("--input", help="What the tool takes, as JSON.")] = "{}",
    idempotency_key: Annotated[
        str, typer.Option(help="The same key is the same call: it takes effect once. [default: a new one]")
    ] = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Call a tool for a tenant, as its runs do: with its policies, and with events in the tenant's log."""
    path, body = f"/tenants/{tenant}/tools/{name}", {"input": _parsed(given)}
    show(AdminClient.find(data_dir).call_once(path, body, idempotency_key or uuid.uuid4().hex), as_json)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--input is not JSON: {error}") from error
