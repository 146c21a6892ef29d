"""``tenantry breakers``, ``bulkheads``, ``breaker``: what protects dependencies, cluster-wide, and why it did what it did."""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from serve.cli.output import print_json, show, table
from serve.client import AdminClient

breaker = typer.Typer(no_args_is_help=True, help="Hold a dependency's breaker open or closed, reset it, or ask why.")

WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Show it again every second, until Ctrl-C.")]
NameArgument = Annotated[str, typer.Argument(help="The dependency, such as model/llama-3.1-8b.", show_default=False)]
ReasonOption = Annotated[str, typer.Option(help="Why: it stands in the log, with your name.", show_default=False)]
TenantOption = Annotated[str, typer.Option(help="The tenant whose own breaker it is. [default: the one all share]")]


def breakers(
    watch: WatchOption = False, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """List the cluster's breakers: which dependencies are called, which are refused, and why."""
    client = AdminClient.find(data_dir)

    def once() -> None:
        rows = client.call("GET", "/breakers")
        if as_json:
            print_json(rows)
            return
        table(["name", "tenant", "state", "since", "failed", "callers", "cause"], [_breaker_row(row) for row in rows])
        _say_if_stale(rows)

    _shown(once, watch)


def bulkheads(
    watch: WatchOption = False, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """List the bulkheads that the cluster shares: permits lent and wanted, and by which processes."""
    client = AdminClient.find(data_dir)

    def once() -> None:
        rows = client.call("GET", "/bulkheads")
        if as_json:
            print_json(rows)
            return
        table(
            ["name", "tenant", "state", "limit", "leased", "wanted", "callers"],
            [
                [
                    row["name"],
                    row["tenant"] or "-",
                    row["state"],
                    str(row["limit"]),
                    str(row.get("leased", "?")),
                    str(row.get("wanted", "?")),
                    " ".join(f"{caller['caller']}={caller['leased']}" for caller in row.get("callers", [])) or "-",
                ]
                for row in rows
            ],
        )
        _say_if_stale(rows)

    _shown(once, watch)


def _breaker_row(row: dict[str, Any]) -> list[str]:
    calls, callers, own = row.get("calls", 0), row.get("callers", 0), row.get("callers_open", 0)
    return [
        row["name"],
        row["tenant"] or "-",
        row["state"],
        row["since"],
        f"{row.get('failures', 0)}/{calls}",
        f"{callers} ({own} open)" if own else str(callers),
        row["cause"] or "-",
    ]


def _say_if_stale(rows: list[dict[str, Any]]) -> None:
    if rows and not rows[0]["live"]:
        print("(the supervisor is away: as last written in the log)", file=sys.stderr)


def _shown(once: Callable[[], None], watch: bool) -> None:
    if not watch:
        once()
        return
    try:
        while True:
            if sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            once()
            sys.stdout.flush()
            time.sleep(1)  # --watch shows the newest state once a second
    except KeyboardInterrupt:
        return


def _force(action: str, name: str, reason: str, tenant: str, data_dir: Any, as_json: bool) -> None:
    body = {"action": action, "reason": reason, "tenant": tenant or None}
    done = AdminClient.find(data_dir).call("POST", f"/breakers/{name}", body)
    show(done, as_json)
    if not done["applied"]:
        print("(written down; it takes effect when the supervisor is back)", file=sys.stderr)


@breaker.command("open")
def open_breaker(
    name: NameArgument,
    reason: ReasonOption,
    tenant: TenantOption = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Hold it open: nobody calls the dependency until it is closed or reset."""
    _force("open", name, reason, tenant, data_dir, as_json)


@breaker.command("close")
def close_breaker(
    name: NameArgument,
    reason: ReasonOption,
    tenant: TenantOption = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Hold it closed: the dependency is called whatever it answers, until it is opened or reset."""
    _force("close", name, reason, tenant, data_dir, as_json)


@breaker.command("reset")
def reset_breaker(
    name: NameArgument,
    reason: ReasonOption,
    tenant: TenantOption = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Close it and let it judge for itself again."""
    _force("reset", name, reason, tenant, data_dir, as_json)


@breaker.command("why")
def why(
    name: NameArgument,
    at: Annotated[str, typer.Option(help="A moment, UTC: 14:03 (today) or 2026-11-24T14:03:00. [default: now]")] = "",
    tenant: TenantOption = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Say what state it was in at a moment, why, and what led there."""
    query = {"tenant": tenant, **({"at": moment(at)} if at else {})}
    found = AdminClient.find(data_dir).call("GET", f"/breakers/{name}", **query)
    if as_json:
        print_json(found)
        return
    because = found["because"]
    print(f"{found['name']} was {found['state']} at {found['at']}" + (":" if because else ", it had never changed"))
    if because:
        print(f"  since {because['at']}, by {because['by']}: {because['cause']}  (event {because['position']})")
    for change in found["history"]:
        own = f"  only {change['caller']}" if change["caller"] else ""
        print(f"  {change['at']}  {change['before']} -> {change['after']}: {change['cause']}{own}")


def moment(text: str) -> str:
    """ISO 8601 in UTC. A bare time is today's. Raises BadParameter."""
    try:
        if "T" not in text and "-" not in text:
            text = f"{datetime.now(UTC).date().isoformat()}T{text}"
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"expected 14:03 or 2026-11-24T14:03:00, got {text!r}") from error
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).isoformat()
