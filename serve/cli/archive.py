"""``tenantry archive``: old events in files."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from serve.cli.output import Progress, print_json, table
from serve.client import AdminClient

archive = typer.Typer(
    no_args_is_help=True,
    help="Move old events from Valkey to files. The platform does it by itself, too; every read still sees one log.",
)


@archive.command("run")
def run_archive(
    tenant: Annotated[str | None, typer.Argument(help="The tenant's id.", show_default=False)] = None,
    all_tenants: Annotated[bool, typer.Option("--all", help="Every tenant's log.")] = False,
    keep: Annotated[
        int | None, typer.Option(min=0, help="Newest events to leave. [default: TENANTRY_ARCHIVE_KEEP_EVENTS]")
    ] = None,
    least: Annotated[
        int | None,
        typer.Option(min=1, help="Fewer are not worth a file. [default: TENANTRY_ARCHIVE_LEAST_EVENTS]"),
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Move old events of one tenant, or of all, to files now. Each file is verified before its events leave Valkey."""
    if (tenant is None) is not all_tenants:
        raise typer.BadParameter("name one tenant, or say --all")
    client = AdminClient.find(data_dir)
    names = _all_tenants(client) if tenant is None else iter([tenant])
    query = {name: value for name, value in (("keep", keep), ("least", least)) if value is not None}
    rows = [_archive_tenant(client, name, query) for name in names]
    if as_json:
        print_json(rows)
    else:
        columns = ["tenant", "moved", "through", "position"]
        table(columns, [[str(row[column]) for column in columns] for row in rows])


def _all_tenants(client: AdminClient) -> Iterator[str]:
    after = ""
    while True:
        page = client.call("GET", "/tenants", after=after)
        yield from (row["id"] for row in page["data"])
        if not (after := page["next"]):
            return


def _archive_tenant(client: AdminClient, tenant: str, query: dict[str, int]) -> dict[str, Any]:
    """A segment a call, until there is nothing more to move."""
    progress, moved = Progress(f"archiving {tenant}"), 0
    while True:
        answer: dict[str, Any] = client.call("POST", f"/tenants/{tenant}/archive", **query)
        moved += answer["moved"]
        progress(answer["through"], answer["position"])
        if not answer.pop("more"):
            return {**answer, "moved": moved}


@archive.command("list")
def list_archive(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Tenants that have events in files: how many files, up to which position, how many bytes."""
    rows = AdminClient.find(data_dir).call("GET", "/archive")["data"]
    if as_json:
        print_json(rows)
        return
    cells = [
        [
            row["tenant"],
            str(len(row["segments"])),
            str(row["through"]),
            str(row["position"]),
            str(sum(segment["bytes"] for segment in row["segments"])),
        ]
        for row in rows
    ]
    table(["tenant", "files", "archived through", "log ends at", "bytes"], cells)
