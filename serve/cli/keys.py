"""``tenantry key``: a tenant's API keys."""

import time
from typing import Annotated, Any

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, show, table, time_text
from serve.cli.spans import seconds
from serve.client import AdminClient

keys = typer.Typer(no_args_is_help=True, help="Issue, list, rotate and revoke a tenant's API keys.")


@keys.command("issue")
def issue_key(
    tenant: TenantArgument,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="inference, runs, read or admin; repeat for several. [default: all but admin]"),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may call; repeat. [default: all]")] = None,
    expires: Annotated[str, typer.Option(help="When it ends, from now: 12h, 30d. [default: never]")] = "",
    user: Annotated[str, typer.Option(help="Whose key it is; the user's role bounds it.")] = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Issue an API key. It is shown this once: only a keyed hash of it is kept."""
    body: dict[str, Any] = {"name": name, "models": model or None, "user_id": user or None}
    if scope:
        body["scopes"] = scope
    if expires:
        body["expires_us"] = int((time.time() + seconds(expires)) * 1e6)
    show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/keys", body), as_json)


@keys.command("rotate")
def rotate_key(
    tenant: TenantArgument,
    key_id: Annotated[str, typer.Argument(help="As `tenantry key list` shows it.")],
    overlap: Annotated[str, typer.Option(help="How long the old secret stays good: 0s, 12h, 7d.")] = "1d",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret, shown this once. The old one stays good for the overlap."""
    body = {"overlap_s": seconds(overlap)}
    show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/keys/{key_id}/rotate", body), as_json)


@keys.command("list")
def list_keys(tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List a tenant's keys, never the keys themselves."""
    rows = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/keys")["data"]
    if as_json:
        print_json(rows)
    else:
        table(["key id", "name", "user", "scopes", "created", "last used", "state"], [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    is_over = row["expires_us"] is not None and row["expires_us"] <= time.time() * 1e6
    state = "revoked" if row["revoked"] else "expired" if is_over else "active"
    used = time_text(row["last_used_us"]) if row["last_used_us"] else "-"
    scopes = ",".join(row["scopes"])
    return [row["key_id"], row["name"], row["user_id"] or "-", scopes, time_text(row["created_us"]), used, state]


@keys.command("revoke")
def revoke_key(
    tenant: TenantArgument,
    key_id: Annotated[str, typer.Argument(help="As `tenantry key list` shows it.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key, at once and for good."""
    show(AdminClient.find(data_dir).call("DELETE", f"/tenants/{tenant}/keys/{key_id}"), as_json)
