"""``tenantry runs``: durable runs of a tenant."""

import contextlib
import json
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from events.money import money
from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, show, table, time_text
from serve.client import AdminClient

runs = typer.Typer(no_args_is_help=True, help="Start durable runs, look at them, and steer them.")

RunArgument = Annotated[str, typer.Argument(help="The run's id.", show_default=False)]
_MARKS = {
    "succeeded": "✓",
    "skipped": "-",
    "failed": "✗",
    "stuck": "!",
    "queued": "…",
    "scheduled": "…",
    "retrying": "↻",
}


@runs.command("start")
def start_run(
    tenant: TenantArgument,
    saga: Annotated[str, typer.Argument(help="Its name, as the module in TENANTRY_SAGAS registers it.")],
    given: Annotated[str, typer.Option("--input", help="What it takes, as JSON.")] = "null",
    idempotency_key: Annotated[
        str, typer.Option(help="The same key with the same input is the same run. [default: a new one]")
    ] = "",
    deadline_s: Annotated[float, typer.Option(help="Undone if it takes longer; 0: it may take for ever.")] = 0.0,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Start a run of a saga."""
    body = {"saga": saga, "input": _parsed(given, "--input"), **({"deadline_s": deadline_s} if deadline_s else {})}
    client = AdminClient.find(data_dir)
    show(client.call_once(f"/tenants/{tenant}/runs", body, idempotency_key or uuid.uuid4().hex), as_json)


@runs.command("agent")
def start_agent(
    tenant: TenantArgument,
    model: Annotated[str, typer.Argument(help="A model of the models file.")],
    question: Annotated[str, typer.Argument(help="What it is to answer.")],
    instructions: Annotated[str, typer.Option(help="What it is to keep to.")] = "",
    tool: Annotated[
        list[str] | None, typer.Option(help="A tool that it may call, or saga:NAME. Repeatable.", show_default=False)
    ] = None,
    approve: Annotated[
        list[str] | None,
        typer.Option(help="A tool each call of which a person allows. Repeatable.", show_default=False),
    ] = None,
    limits: Annotated[str, typer.Option(help='Such as {"turns": 5, "tokens": 20000, "cost_usd": "0.10"}')] = "{}",
    idempotency_key: Annotated[str, typer.Option(help="The same key is the same run. [default: a new one]")] = "",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Start an agent: a model that calls tools until it has an answer. Watch it with `tenantry runs follow`."""
    agent = {
        "model": model, "instructions": instructions, "tools": tool or [], "approve": approve or [],
        "limits": _parsed(limits, "--limits"),
    }  # fmt: skip
    body = {"agent": agent, "input": question}
    client = AdminClient.find(data_dir)
    show(client.call_once(f"/tenants/{tenant}/runs", body, idempotency_key or uuid.uuid4().hex), as_json)


@runs.command("list")
def list_runs(
    tenant: TenantArgument,
    status: Annotated[
        str, typer.Option(help="Such as running, failed, or stuck: could not be undone. [default: all]")
    ] = "",
    saga: Annotated[str, typer.Option(help="Of this saga only; agents are the saga `agent`.")] = "",
    since: Annotated[datetime | None, typer.Option(help="Started at this time (UTC) or after it.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Started before this time (UTC).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """List runs by their start, the newest first."""
    query: dict[str, Any] = {"status": status, "saga": saga, "since_us": _us(since), "until_us": _us(until)}
    query = {name: value for name, value in query.items() if value}
    client, rows, after = AdminClient.find(data_dir), list[dict[str, Any]](), ""
    while len(rows) < limit:
        page = client.call("GET", f"/tenants/{tenant}/runs", limit=min(limit - len(rows), 500), after=after, **query)
        rows += page["data"]
        if not (after := page["next"] or ""):
            break
    if as_json:
        print_json(rows)
    else:
        table(["id", "saga", "status", "started", "took", "USD", "what is wrong"], [_line(row) for row in rows])


@runs.command("follow")
def follow_run(
    tenant: TenantArgument, run: RunArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """Print what happens in a run, and what its models write while they write it, until it has ended."""
    with contextlib.suppress(KeyboardInterrupt):
        _print_events(AdminClient.find(data_dir), f"/tenants/{tenant}/runs/{run}/events", as_json)


def _print_events(client: AdminClient, path: str, as_json: bool) -> None:
    is_writing = False
    for kind, data in client.follow_on(path):
        if as_json:
            print(json.dumps({"type": kind, **data}), flush=True)
        elif kind == "run.delta":
            print(data["text"], end="", flush=True)
            is_writing = True
        else:
            print("\n" * is_writing + _happened(kind, data), flush=True)
            is_writing = False


@runs.command("caps")
def show_caps(
    tenant: TenantArgument,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps under way at once, in all.", show_default=False)
    ] = None,
    each: Annotated[
        int | None, typer.Option(min=1, help="Of any one tool, function or model.", show_default=False)
    ] = None,
    of: Annotated[
        list[str] | None, typer.Option(help="Of one by name: payments=2. Repeatable.", show_default=False)
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Go back to the platform's own caps.")] = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show how many steps of a tenant may be with runners at once and how many are, or change what is named."""
    client, path = AdminClient.find(data_dir), f"/tenants/{tenant}/run-caps"
    if not (reset or steps or each or of):
        show(client.call("GET", path), as_json)
        return
    platform: dict[str, Any] = {"steps_max": 0, "target_max": 0, "targets": {}}
    now = platform if reset else client.call("GET", path)
    targets = {**now["targets"], **dict(map(_cap, of or []))}
    body = {"steps_max": steps or now["steps_max"], "target_max": each or now["target_max"], "targets": targets}
    show(client.call("PUT", path, body), as_json)


@runs.command("show")
def show_run(
    tenant: TenantArgument, run: RunArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """Draw a run's steps, with what undid them and their child runs: state, attempts, time, cost."""
    client = AdminClient.find(data_dir)
    found = client.call("GET", f"/tenants/{tenant}/runs/{run}")
    if as_json:
        print_json(found)
        return
    print(_headline(found))
    for line in _tree(client, tenant, found):
        print(line)
    for name in ("output", "error"):
        if name in found:
            print(f"{name}: {json.dumps(found[name])}")


@runs.command("signal")
def signal_run(
    tenant: TenantArgument,
    run: RunArgument,
    name: Annotated[str, typer.Argument(help="The signal's name.", show_default=False)],
    payload: Annotated[str, typer.Option(help="What the waiting step gets, as JSON.")] = "null",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Give a run what it waits for, or will wait for."""
    path = f"/tenants/{tenant}/runs/{run}/signals/{name}"
    show(AdminClient.find(data_dir).call_once(path, _parsed(payload, "--payload"), uuid.uuid4().hex), as_json)


@runs.command("cancel")
def cancel_run(
    tenant: TenantArgument, run: RunArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """Stop a run and its child runs; what they have done is undone."""
    show(AdminClient.find(data_dir).call_once(f"/tenants/{tenant}/runs/{run}/cancel", None, uuid.uuid4().hex), as_json)


@runs.command("retry")
def retry_run(
    tenant: TenantArgument, run: RunArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False
) -> None:
    """Have tried again what failed for good: a failed step, or what could not be undone."""
    show(AdminClient.find(data_dir).call_once(f"/tenants/{tenant}/runs/{run}/retry", None, uuid.uuid4().hex), as_json)


@runs.command("fork")
def fork_run(
    tenant: TenantArgument,
    run: RunArgument,
    step: Annotated[str, typer.Argument(help="Done anew, with all after it.", show_default=False)],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Start a new run that keeps the results before a step, and does the rest anew."""
    path = f"/tenants/{tenant}/runs/{run}/fork"
    show(AdminClient.find(data_dir).call_once(path, {"step": step}, uuid.uuid4().hex), as_json)


def _cap(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal():
        raise typer.BadParameter(f"--of takes NAME=NUMBER, got {text!r}")
    return name, int(number)


def _us(time: datetime | None) -> int:
    return int(time.replace(tzinfo=UTC).timestamp() * 1e6) if time else 0


def _line(row: dict[str, Any]) -> list[str]:
    took = f"{(row['ended_us'] - row['started_us']) / 1e6:,.1f} s" if row["ended_us"] else ""
    cost = money(row["cost_nano_usd"]) if row["cost_nano_usd"] else ""
    wrong = f"could not be undone: {', '.join(row['stuck'])}" if row["stuck"] else row["error_code"]
    return [row["id"], row["saga"], row["status"], time_text(row["started_us"]), took, cost, wrong]


def _happened(kind: str, data: dict[str, Any]) -> str:
    """One event in a line: when, what, to which step, how it went."""
    order = data.get("order") or {}
    step = order.get("step") or data.get("step") or data.get("name") or ""
    parts = [time_text(data["time_us"]), kind.removeprefix("run.").removesuffix(".v1"), step]
    if order:
        parts.append(f"{order['kind']} {order['target']}")
    parts += [str(data[name]) for name in ("saga", "status", "code", "message") if data.get(name)]
    return "  ".join(filter(None, parts))


def _headline(run: dict[str, Any]) -> str:
    ended = f", ended {time_text(run['ended_us'])}" if run["ended_us"] else ""
    cost = f", {money(run['cost_nano_usd'])} USD" if run["cost_nano_usd"] else ""
    return f"{run['saga']} v{run['version']} {run['id']}: {run['status']}, began {time_text(run['started_us'])}{ended}{cost}"


def _tree(client: AdminClient, tenant: str, run: dict[str, Any], indent: str = "") -> list[str]:
    """Below each step: what undid it, or the child run that it is."""
    undone_by = {step["undoes"]: step for step in run["steps"] if step["undoes"]}
    forward, lines = [step for step in run["steps"] if not step["undoes"]], []
    for number, step in enumerate(forward, 1):
        is_last = number == len(forward)
        lines.append(f"{indent}{'└─' if is_last else '├─'} {_step(step)}")
        below = indent + ("   " if is_last else "│  ")
        if undoing := undone_by.get(step["name"]):
            lines.append(f"{below}└─ {_step(undoing)}")
        if step["kind"] == "child":
            child = client.call("GET", f"/tenants/{tenant}/runs/{run['id']}/{step['name']}")
            lines += [f"{below}{_headline(child)}", *_tree(client, tenant, child, below)]
    return lines


def _step(step: dict[str, Any]) -> str:
    parts = [f"{_MARKS.get(step['status'], '?')} {step['name']}"]
    if step["kind"]:
        parts.append(f"{step['kind']} {step['target']}")
    parts.append(step["status"])
    if step["attempts"] > 1:
        parts.append(f"{step['attempts']} attempts")
    if step["duration_us"]:
        parts.append(f"{step['duration_us'] / 1e3:,.0f} ms")
    if step["cost_nano_usd"]:
        parts.append(f"{money(step['cost_nano_usd'])} USD")
    if error := step.get("error"):
        parts.append(f"{error['code']}: {error['message']}")
    return "  ".join(parts)


def _parsed(text: str, option: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} is not JSON: {error}") from error
