"""A tenant's log: what happened, and whether it is what was written."""

import json
from typing import Annotated, Any

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import Progress, print_json, time_text
from serve.client import AdminClient, AdminError


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


def verify(tenant: TenantArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Walk a tenant's hash chain; fails with the first position that is not what was written."""
    progress, found = Progress(f"verifying {tenant}"), {}
    for found in AdminClient.find(data_dir).follow(f"/tenants/{tenant}/verify", follow=True):
        if "error" in found:
            raise AdminError(found["error"]["message"])
        if "done" in found:
            progress(found["done"], found["of"])
    if "events" not in found:
        raise AdminError("the platform ended before the verification did: verify again")
    if as_json:
        print_json(found)
    else:
        print(f"ok: {found['events']} events of {tenant!r} form one unbroken chain; head {found['head_hash']}")


def _print_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(event), flush=True)
        return
    data = " ".join(f"{name}={value}" for name, value in event["data"].items())
    print(
        f"{event['position']:>7}  {time_text(event['time_us'])}  {event['type']:<28} {event['actor']:<20} {data}",
        flush=True,
    )
