"""``tenantry user``: a tenant's users and their roles."""

from typing import Annotated

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, show, table, time_text
from serve.client import AdminClient

users = typer.Typer(no_args_is_help=True, help="Add, list, change and remove a tenant's users.")
UserArgument = Annotated[str, typer.Argument(help="The user's id.", show_default=False)]
RoleOption = Annotated[str, typer.Option(help="admin, user (calls, runs, reads) or viewer (reads).")]


@users.command("add")
def add_user(
    tenant: TenantArgument,
    user: UserArgument,
    name: Annotated[str, typer.Option(help="A name to show. [default: the id]")] = "",
    role: RoleOption = "user",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Add a user. Issue keys with `tenantry key issue TENANT --user ID`."""
    body = {"user_id": user, "name": name or user, "role": role}
    show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/users", body), as_json)


@users.command("list")
def list_users(tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List a tenant's users."""
    rows = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/users")["data"]
    if as_json:
        print_json(rows)
    else:
        cells = [[r["user_id"], r["name"], r["role"], time_text(r["created_us"])] for r in rows]
        table(["user id", "name", "role", "created"], cells)


@users.command("role")
def change_role(
    tenant: TenantArgument,
    user: UserArgument,
    role: Annotated[str, typer.Argument(help="admin, user or viewer", show_default=False)],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Change a user's role. A smaller one takes effect on the user's keys at once."""
    show(AdminClient.find(data_dir).call("PUT", f"/tenants/{tenant}/users/{user}", {"role": role}), as_json)


@users.command("remove")
def remove_user(
    tenant: TenantArgument,
    user: UserArgument,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Remove a user and revoke all the user's keys."""
    show(AdminClient.find(data_dir).call("DELETE", f"/tenants/{tenant}/users/{user}"), as_json)
