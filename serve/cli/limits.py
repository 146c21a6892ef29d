"""``tenantry limit``: how fast and how wide a tenant, a key or a user may go."""

import re
from typing import Annotated, Any

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, table
from serve.cli.spans import seconds
from serve.cli.subjects import KeyOption, UserOption, path_of
from serve.client import AdminClient

limits = typer.Typer(no_args_is_help=True, help="Limit requests, tokens and concurrent calls.")
_RULE = re.compile(r"(requests|tokens|concurrency)=([0-9]+)(?:/([0-9]+[smhd]))?(?::([a-z_]+))?")


@limits.command("set")
def set_limits(
    tenant: TenantArgument,
    rules: Annotated[
        list[str],
        typer.Argument(
            help="Such as requests=600/60s, tokens=1000000/1m:sliding_window, concurrency=20. "
            "Strategies: token_bucket (default), sliding_window, fixed_window.",
            show_default=False,
        ),
    ],
    key: KeyOption = "",
    user: UserOption = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set all limits of a tenant, a key or a user. What is over a limit gets 429 and when to come back."""
    body = {"limits": [_rule(text) for text in rules]}
    _show(AdminClient.find(data_dir).call("PUT", f"{path_of(tenant, key, user)}/limits", body), as_json)


@limits.command("clear")
def clear_limits(
    tenant: TenantArgument,
    key: KeyOption = "",
    user: UserOption = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Remove all limits of a tenant, a key or a user."""
    _show(AdminClient.find(data_dir).call("PUT", f"{path_of(tenant, key, user)}/limits", {"limits": []}), as_json)


@limits.command("list")
def list_limits(
    tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """List all limits with what is left of them now."""
    rows = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/limits")["data"]
    if as_json:
        print_json(rows)
    else:
        _table(rows)


def _rule(text: str) -> dict[str, Any]:
    match = _RULE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"expected such as requests=600/60s or concurrency=20, got {text!r}")
    resource, limit, span, strategy = match.groups()
    rule = {"resource": resource, "limit": int(limit), "window_s": seconds(span or "60s")}
    return {**rule, "strategy": strategy} if strategy else rule


def _show(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(row)
    else:
        _table([row])


def _table(rows: list[dict[str, Any]]) -> None:
    columns = ["resource", "limit", "window_s", "strategy", "left"]
    cells = [[row["subject"], *(str(rule[c]) for c in columns)] for row in rows for rule in row["limits"]]
    table(["subject", "resource", "limit", "window s", "strategy", "left"], cells)
