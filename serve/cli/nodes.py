"""``tenantry node`` and ``tenantry pool``: where tenants' actors run, and how many share the pool."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.cli.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption, TenantArgument
from serve.cli.output import print_json, say_aside, table
from serve.client import AdminClient

nodes = typer.Typer(no_args_is_help=True, help="See the cluster's nodes, and take tenants away from one.")
pool = typer.Typer(no_args_is_help=True, help="Scale the actors that share the tenants of plan `free`, and move them.")

NodeArgument = Annotated[
    str, typer.Argument(help="The node's id, or the beginning of it: see `tenantry node list`.", show_default=False)
]
_LOOK_S = 1.0
_ID_CHARS = 12


@nodes.command("list")
def list_nodes(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List the nodes that are alive, with the tenants' actors on each."""
    _show(_placement(data_dir), as_json)


@nodes.command("drain")
def drain_node(
    node: NodeArgument,
    wait: Annotated[bool, typer.Option(help="Return when no tenant's actor is left there.")] = True,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Move all tenants' actors off a node before you take it away; tenants don't notice.

    Ray puts nothing new there from then on. There is no way back but a new start of Ray on that node.
    """
    client = AdminClient.find(data_dir)
    placement = client.call_long(f"/nodes/{node}/drain")
    while wait and (left := _actors_on(placement, node)):
        say_aside(f"{len(left)} actors left: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}")
        time.sleep(_LOOK_S)  # a placement is asked for over HTTP, not told: the beat of the progress that is shown
        placement = client.call("GET", "/nodes")
    _show(placement, as_json)


@pool.command("scale")
def scale_pool(
    shards: Annotated[int, typer.Argument(min=1, help="How many actors.", show_default=False)],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Have more or fewer actors share the tenants of plan `free`, at once and while they are used.

    It lasts until the platform is started or deployed anew, with TENANTRY_POOL_SHARDS.
    """
    _show(AdminClient.find(data_dir).call_long("/pool", {"shards": shards}, method="PUT"), as_json)


@pool.command("move")
def move_shard(
    shard: Annotated[str, typer.Argument(help="Such as pool-0: see `tenantry node list`.", show_default=False)],
    node: NodeArgument,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Move an actor of the pool, with all the tenants it has, to another node while they are used."""
    number = shard.removeprefix("pool-").partition(".")[0]
    if not number.isdecimal():
        raise typer.BadParameter(f"{shard!r} is not an actor of the pool, such as pool-0")
    _show(AdminClient.find(data_dir).call_long(f"/pool/{number}/move", {"node": node}), as_json)


def move_tenant(
    tenant: TenantArgument,
    node: NodeArgument,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Move a tenant that has an actor of its own to another node while it is used; no command is lost."""
    _show(AdminClient.find(data_dir).call_long(f"/tenants/{tenant}/move", {"node": node}), as_json)


def _placement(data_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = AdminClient.find(data_dir).call("GET", "/nodes")
    return found


def _actors_on(placement: dict[str, Any], node: str) -> list[str]:
    return [name for row in placement["data"] if row["id"].startswith(node) for name in row["actors"]]


def _show(placement: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(placement)
        return
    moving = set(placement["moving"])
    rows = []
    for row in placement["data"]:
        state = "head" if row["head"] else "draining" if row["draining"] else ""
        named = [f"{name} (moving)" if name.partition(".")[0] in moving else name for name in row["actors"]]
        rows.append([row["id"][:_ID_CHARS], row["address"], state, str(len(named)), ", ".join(named)])
    table(["node", "address", "state", "actors", ""], rows)
    print(f"pool: {placement['pool_shards']} actor{'s' if placement['pool_shards'] > 1 else ''}")
