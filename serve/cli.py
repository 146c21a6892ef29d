"""``tenantry``: run the platform, look after its tenants."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from events.errors import PlatformError
from serve.client import AdminClient, NotRunningError

app = typer.Typer(
    help="Tenantry: a multi-tenant AI platform on Ray. Start with `tenantry up`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tenants = typer.Typer(no_args_is_help=True, help="Create, list and show tenants, and set their budgets.")
keys = typer.Typer(no_args_is_help=True, help="Issue, list and revoke a tenant's API keys.")
app.add_typer(tenants, name="tenant")
app.add_typer(keys, name="key")

DataDirOption = Annotated[
    Path, typer.Option("--data-dir", envvar="TENANTRY_DATA_DIR", help="Where the platform keeps everything.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
TenantArgument = Annotated[str, typer.Argument(help="The tenant's id.", show_default=False)]
DEFAULT_DATA_DIR = Path(".tenantry")


@app.command()
def up(
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    port: Annotated[int | None, typer.Option(help="HTTP port on 127.0.0.1. [default: a free one]")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write base_url, keys and addresses here as JSON when ready.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="YAML file that says which models there are and who serves them.")
    ] = None,
) -> None:
    """Run the platform on this machine until Ctrl-C.

    Starts nats-server, valkey-server, Ray, the gateway and, where the extra `local` is installed and no other model is
    named, a small local model. Ends exactly what it started. TENANTRY_NATS_URL, TENANTRY_VALKEY_URL and
    TENANTRY_RAY_ADDRESS name servers of yours to use instead.
    """
    from serve import platform  # noqa: PLC0415 - Ray's environment must be set before Ray is imported

    _say(f"Starting Tenantry in {data_dir} …")
    platform.run(platform.Options(data_dir, port, ready_file, models), _say)


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
    _show(AdminClient.find(data_dir).call("POST", "/tenants", body), as_json)


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
        _print_json(rows)
    else:
        _table(
            ["id", "name", "plan", "created"], [[r["id"], r["name"], r["plan"], _time(r["created_us"])] for r in rows]
        )


@app.command("show", hidden=True)
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
    _show(AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}", **query), as_json)


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
    _show(AdminClient.find(data_dir).call("PUT", f"/tenants/{tenant}/budget", body), as_json)


@tenants.command("resume")
def resume_tenant(
    tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """Open a tenant again that was halted because its log was not what it should be. Verifies the log first."""
    _show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/resume"), as_json)


@keys.command("issue")
def issue_key(
    tenant: TenantArgument,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Issue an API key. It is shown this once: only a keyed hash of it is kept."""
    _show(AdminClient.find(data_dir).call("POST", f"/tenants/{tenant}/keys", {"name": name}), as_json)


@keys.command("list")
def list_keys(tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List a tenant's keys, never the keys themselves."""
    rows = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/keys")["data"]
    if as_json:
        _print_json(rows)
    else:
        cells = [
            [r["key_id"], r["name"], _time(r["created_us"]), "revoked" if r["revoked"] else "active"] for r in rows
        ]
        _table(["key id", "name", "created", "state"], cells)


@keys.command("revoke")
def revoke_key(
    tenant: TenantArgument,
    key_id: Annotated[str, typer.Argument(help="As `tenantry key list` shows it.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key, at once and for good."""
    _show(AdminClient.find(data_dir).call("DELETE", f"/tenants/{tenant}/keys/{key_id}"), as_json)


@app.command()
def events(
    tenant: TenantArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events after this position.")] = 0,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Print a tenant's log: what happened, when, and who asked for it."""
    client, path = AdminClient.find(data_dir), f"/tenants/{tenant}/events"
    if follow:
        try:
            for event in client.follow(path, after=after, follow=True):
                _print_event(event, as_json)
        except KeyboardInterrupt:
            return
    at: int | None = after
    while at is not None and not follow:
        page = client.call("GET", path, after=at, limit=500)
        for event in page["data"]:
            _print_event(event, as_json)
        at = page["next_after"]


@app.command()
def usage(tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Show what a tenant has used: requests, tokens and cost, by model and day."""
    used = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/usage")
    if as_json:
        _print_json(used)
        return
    columns = ["requests", "failed", "unknown", "input_tokens", "output_tokens", "cost_usd"]
    rows = [[row["day"], row["model"], *(str(row[c]) for c in columns)] for row in used["by_day"]]
    rows.append(["total", "", *(str(used[column]) for column in columns)])
    _table(["day (UTC)", "model", *(column.replace("_", " ") for column in columns)], rows)


@app.command()
def verify(tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Walk a tenant's hash chain; fails with the first position that is not what was written."""
    found = AdminClient.find(data_dir).call("GET", f"/tenants/{tenant}/verify")
    if as_json:
        _print_json(found)
    else:
        print(f"ok: {found['events']} events of {tenant!r} form one unbroken chain; head {found['head_hash']}")


@app.command()
def doctor(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Examine the running platform: each line is ok, or says what to do."""
    report = AdminClient.find(data_dir).call("GET", "/doctor")
    if as_json:
        _print_json(report)
    else:
        for finding in report["findings"]:
            print(f"{'ok  ' if finding['ok'] else 'FAIL'}  {finding['name']:<12} {finding['detail']}")
    if not report["ok"]:
        raise typer.Exit(1)


@app.command()
def bench(
    rows: Annotated[list[str] | None, typer.Argument(help="Rows to measure. [default: all]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the platform, each figure beside a ceiling measured in the same run. Needs a clone; takes minutes."""
    from tests.bench import runner  # noqa: PLC0415 - only this command needs it

    measured = runner.run(rows or [], say=_say_aside)
    if as_json:
        _print_json(measured)
    else:
        columns = ["row", "value", "unit", "ceiling", "ratio", "reach", "ok"]
        _table(columns, [[str(row[column]) for column in columns] for row in measured])


def _say(line: str) -> None:
    print(line, flush=True)


def _say_aside(line: str) -> None:
    """Progress: not part of what a program reads from us."""
    print(line, file=sys.stderr, flush=True)


def _show(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(value)
        return
    width = max(map(len, value))
    for name, item in value.items():
        shown = _time(item) if name.endswith("_us") else item
        print(f"{name.removesuffix('_us'):<{width}}  {json.dumps(shown) if isinstance(shown, dict) else shown}")


def _print_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(event), flush=True)
        return
    data = " ".join(f"{name}={value}" for name, value in event["data"].items())
    print(
        f"{event['position']:>7}  {_time(event['time_us'])}  {event['type']:<28} {event['actor']:<20} {data}",
        flush=True,
    )


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _table(columns: list[str], rows: list[list[str]]) -> None:
    """Left-aligned columns, never cut: they are also read by grep and awk."""
    widths = [max(len(line[at]) for line in [columns, *rows]) for at in range(len(columns))]
    for line in [columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _fail(error: PlatformError) -> NoReturn:
    print(f"tenantry: {error}", file=sys.stderr)
    raise SystemExit(2 if isinstance(error, NotRunningError) else 1)


def main() -> None:
    try:
        app()
    except PlatformError as error:
        _fail(error)


if __name__ == "__main__":
    main()
