"""``tenantry key``: a tenant's API keys."""

from typing import Annotated

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, show, table, time_text
from serve.client import AdminClient

keys = typer.Typer(no_args_is_help=True, help="Issue, list and revoke a tenant's API keys.")


@keys.command("issue")
def issue_key(
    tenant: TenantArgument,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Issue an API key. It is shown this once: only a keyed hash of it is kept."""
    show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/keys", {"name": name}), as_json)


@keys.command("list")
def list_keys(tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List a tenant's keys, never the keys themselves."""
    rows = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/keys")["data"]
    if as_json:
        print_json(rows)
    else:
        cells = [
            [r["key_id"], r["name"], time_text(r["created_us"]), "revoked" if r["revoked"] else "active"] for r in rows
        ]
        table(["key id", "name", "created", "state"], cells)


@keys.command("revoke")
def revoke_key(
    tenant: TenantArgument,
    key_id: Annotated[str, typer.Argument(help="As `tenantry key list` shows it.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key, at once and for good."""
    show(AdminClient.find(data_dir).call("DELETE", f"/tenants/{tenant}/keys/{key_id}"), as_json)
