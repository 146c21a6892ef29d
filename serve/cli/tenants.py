"""``tenantry tenant``: who uses the platform, and what they may spend."""

from typing import Annotated

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, show, table, time_text
from serve.client import AdminClient

tenants = typer.Typer(
    no_args_is_help=True, help="Create, list, show, suspend and resume tenants, and set their budgets."
)


@tenants.command("create")
def create_tenant(
    tenant: TenantArgument,
    name: Annotated[str, typer.Option(help="A name to show. [default: the id]")] = "",
    plan: Annotated[str, typer.Option(help="free shares an actor; pro and enterprise get their own.")] = "free",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Create a tenant. Its id may hold a-z, 0-9 and -."""
    body = {"id": tenant, "name": name, "plan": plan}
    show(AdminClient.find(data_dir).call("POST", "/tenants", body), as_json)


@tenants.command("list")
def list_tenants(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List tenants by id."""
    client, rows, after = AdminClient.find(data_dir), [], ""
    while True:
        page = client.call("GET", "/tenants", after=after)
        rows += page["data"]
        if not (after := page["next"]):
            break
    if as_json:
        print_json(rows)
    else:
        table(
            ["id", "name", "plan", "created"],
            [[r["id"], r["name"], r["plan"], time_text(r["created_us"])] for r in rows],
        )


@tenants.command("show")
def show_tenant(
    tenant: TenantArgument,
    at: Annotated[
        int | None, typer.Option(min=1, help="As it was after the event at this position of its log.")
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show a tenant's plan, budget and what is open: now, or at a past position of its log."""
    query = {} if at is None else {"at": at}
    show(AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}", **query), as_json)


@tenants.command("plan")
def change_plan(
    tenant: TenantArgument,
    plan: Annotated[str, typer.Argument(help="free shares an actor; pro and enterprise get their own.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Change a tenant's plan. It moves to the actor of that plan while it is used; no command is lost."""
    show(AdminClient.find(data_dir).call("PUT", f"/tenants/{tenant}/plan", {"plan": plan}), as_json)


@tenants.command("budget")
def set_budget(
    tenant: TenantArgument,
    limit_usd: Annotated[str, typer.Argument(help="USD, such as 25.00")],
    window: Annotated[str, typer.Option(help="day, week, month (UTC) or total")] = "month",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set how much a tenant may spend per window. A call that might exceed it is refused before it starts."""
    body = {"limit_usd": limit_usd, "window": window}
    show(AdminClient.find(data_dir).call("PUT", f"/tenants/{tenant}/budget", body), as_json)


@tenants.command("suspend")
def suspend_tenant(
    tenant: TenantArgument,
    reason: Annotated[str, typer.Option(help="Kept in the log.")] = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Refuse all keys of a tenant and every new call, within a second. Calls under way are finished and booked."""
    show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/suspend", {"reason": reason}), as_json)


@tenants.command("erase")
def erase_tenant(
    tenant: TenantArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask: erasing can't be undone.")] = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Destroy a tenant's personal data for good: its key, replies, snapshots, read models; and prove it, place by place.

    The log closes with the fact and still verifies; what was personal in it can't be read by anybody any more.
    """
    if not yes:
        typer.confirm(f"Erase tenant {tenant!r} for good?", abort=True)
    report = AdminClient.find(data_dir).call_long(f"/tenants/{tenant}/erase")
    if as_json:
        print_json(report)
    else:
        for place in report["places"]:
            print(f"{'ok  ' if place['ok'] else 'FAIL'}  {place['name']:<28} {place['detail']}")
    if not report["ok"]:
        raise typer.Exit(1)


@tenants.command("resume")
def resume_tenant(
    tenant: TenantArgument,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on although the store has lost acknowledged events of it.")
    ] = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Resume a suspended tenant, or open one again that was halted because its log was not what it should be.

    A halted tenant's log is verified first.
    """
    client = AdminClient.find(data_dir)
    if accept_loss:
        client.call_long(f"/tenants/{tenant}/accept-loss")
    show(client.call_long(f"/tenants/{tenant}/resume"), as_json)


@tenants.command("quarantine")
def list_quarantined(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List tenants that are not activated because their activations kept crashing, each with the reason."""
    rows = AdminClient.find(data_dir).call("GET", "/quarantine")
    if as_json:
        print_json(rows)
    else:
        table(
            ["tenant", "since", "until", "reason"], [[r["tenant"], r["since"], r["until"], r["reason"]] for r in rows]
        )


@tenants.command("release")
def release_tenant(
    tenant: TenantArgument,
    reason: Annotated[str, typer.Option(help="Why, for the log.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Let a tenant out of quarantine: its next request activates it."""
    show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/release", {"reason": reason}), as_json)
