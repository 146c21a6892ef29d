"""``tenantry tell``, ``tenantry outcome`` and ``tenantry dlq``: commands that nobody waits for, and those that failed for good."""

import json
from typing import Annotated, Any

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, show, table, time_text
from serve.client import AdminClient

dead_letters = typer.Typer(
    no_args_is_help=True,
    help="Dead letters: queued commands that failed for good. They are kept for 30 days, with all that is known of them.",
)

LetterArgument = Annotated[str, typer.Argument(help="As `tenantry dlq list` shows it.", show_default=False)]
CommandIdArgument = Annotated[str, typer.Argument(help="As `tenantry tell` printed it.", show_default=False)]


def tell(
    tenant: TenantArgument,
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="The command's type, such as budget.set.")],
    fields: Annotated[
        list[str] | None, typer.Argument(help="Its fields as NAME=VALUE; a VALUE that is JSON is taken as such.")
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Queue a command for a tenant and go on: it is on disk, and happens in its turn, whatever is restarted meanwhile.

    Example: `tenantry tell acme budget.set limit_nano_usd=25000000000 window=month`, then `tenantry outcome acme ID`.
    """
    body = {"type": kind, **dict(map(_field, fields or []))}
    show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/commands", body), as_json)


def outcome(
    tenant: TenantArgument,
    command_id: CommandIdArgument,
    queued: Annotated[int | None, typer.Option(help="Its number in the queue, as `tell` printed it.")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show what became of a queued command: queued, done, refused or dead. Known for 48 h."""
    query = {} if queued is None else {"queued": queued}
    show(AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/commands/{command_id}", **query), as_json)


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@dead_letters.command("list")
def list_letters(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant's. [default: all]")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """List dead letters in the order of their deaths."""
    client, rows, after = AdminClient.find(data_dir), [], 0
    only = {} if tenant is None else {"tenant": tenant}
    while True:
        page = client.call("GET", "/dead-letters", after=after, **only)
        rows += page["data"]
        if not (after := page["next_after"]):
            break
    if as_json:
        print_json(rows)
    else:
        cells = [
            [r["tenant"], r["id"], r["cause"], str(r["attempts"]), time_text(r["died_us"]), r["message"]] for r in rows
        ]
        table(["tenant", "id", "cause", "attempts", "died", "message"], cells)


@dead_letters.command("show")
def show_letter(
    tenant: TenantArgument,
    letter: LetterArgument,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of a dead letter, the command itself included."""
    show(AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/dead-letters/{letter}"), as_json)


@dead_letters.command("replay")
def replay_letter(
    tenant: TenantArgument,
    letter: LetterArgument,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Queue the command again, under its own command id: what it did once it does not do twice."""
    show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/dead-letters/{letter}/replay"), as_json)


@dead_letters.command("discard")
def discard_letter(
    tenant: TenantArgument,
    letter: LetterArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Drop a dead letter for good. Asks first."""
    if not yes:
        typer.confirm(f"Discard the command {letter} of tenant {tenant}? Nothing brings it back", abort=True, err=True)
    path = f"/tenants/{tenant}/dead-letters/{letter}"
    show(AdminClient.find(data_dir).call("DELETE", path, confirm=letter), as_json)
