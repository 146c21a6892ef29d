"""Where tenants' actors run: the cluster's nodes, moves between them, and how many actors the pool has."""

import asyncio
import time
from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, Field

from actors.supervision.moves import POOL_SHARDS_MAX
from actors.supervision.placement import (
    PLACEMENT,
    AnyOrder,
    DrainNode,
    MoveShard,
    MoveTenant,
    NotPlaced,
    ScalePool,
    ShowPlacement,
    decode_answer,
    encode,
)
from events.bus import NoOneListensError
from events.errors import CommandRefusedError, NotServedError, OutcomeUnknownError
from events.slices import SYSTEM_TENANT
from serve.admin.routes import Svc, head_of, keyed_writes, router
from serve.http_errors import HttpError
from serve.services import Services

_SHOW_TIMEOUT_S = 10.0
_ATTEMPT_TIMEOUT_S, _RETRY_S = 5.0, 0.2
_MOVE_TIMEOUT_S = 180.0  # the start of a process on a busy node, then its tenants, some hundred a second

NodeId = Annotated[str, Path(min_length=1, max_length=64, description="The node's id, or the beginning of it")]


class NodeOut(BaseModel):
    id: str
    address: str
    head: bool
    draining: bool = Field(description="Ray puts nothing new there")
    actors: list[str] = Field(
        description="Tenants' actors: `silo-<tenant>`, `pool-<shard>`; `.1` and so on: moved before"
    )


class PlacementOut(BaseModel):
    """``moving``: the actors whose tenants are on their way to another one."""

    data: list[NodeOut]
    pool_shards: int
    moving: list[str]


class MoveIn(BaseModel, extra="forbid"):
    node: Annotated[str, Field(min_length=1, max_length=64, description="The node's id, or the beginning of it")]


class PoolIn(BaseModel, extra="forbid"):
    shards: Annotated[int, Field(ge=1, le=POOL_SHARDS_MAX)]


async def _order(services: Services, order: AnyOrder, timeout_s: float = _MOVE_TIMEOUT_S) -> PlacementOut:
    """Repeated while there is no answer: a supervisor that was killed has a successor, and each order may be repeated."""
    ends, answer = time.monotonic() + timeout_s, None
    while answer is None and (left_s := ends - time.monotonic()) > 0:
        try:
            answer = decode_answer(
                await services.bus.request(PLACEMENT, encode(order), min(left_s, _ATTEMPT_TIMEOUT_S))
            )
        except NoOneListensError:
            await asyncio.sleep(_RETRY_S)  # back-off; nothing tells when a supervisor is back
        except TimeoutError:
            continue
    if answer is None and isinstance(order, ShowPlacement):
        raise NotServedError(SYSTEM_TENANT, "the root supervisor does not answer")
    if answer is None:
        message = "it takes longer: see how far it is with `tenantry node list`"
        raise HttpError(504, OutcomeUnknownError.code, message)
    if isinstance(answer, NotPlaced):
        raise CommandRefusedError(answer.code, answer.message)
    data = [
        NodeOut(id=node.id, address=node.address, head=node.is_head, draining=node.draining, actors=node.actors)
        for node in answer.nodes
    ]
    return PlacementOut(data=data, pool_shards=answer.pool_shards, moving=answer.moving)


@router.get("/nodes")
async def show_placement(services: Svc) -> PlacementOut:
    """The cluster's nodes that are alive, the tenants' actors that run there, and what is on its way."""
    return await _order(services, ShowPlacement(), _SHOW_TIMEOUT_S)


@keyed_writes.post("/nodes/{node}/drain")
async def drain_node(services: Svc, node: NodeId) -> PlacementOut:
    """Before a node is taken away: Ray puts nothing new there, and the tenants' actors move to the others, one after the
    other, while they are used. It has begun when this returns; `GET /admin/v1/nodes` shows what is left there. There is no
    way back but a new start of Ray on that node. `ray drain-node` and autoscalers have the same effect.
    """
    return await _order(services, DrainNode(node))


@keyed_writes.post("/tenants/{tenant}/move")
async def move_tenant(services: Svc, tenant: str, body: MoveIn) -> PlacementOut:
    """Move a tenant that has an actor of its own to another node, while it is used: no command is lost or done twice. The
    new actor starts first. It stays there until it is idle, or its node goes.
    """
    await head_of(services, tenant)
    return await _order(services, MoveTenant(tenant, body.node))


@keyed_writes.put("/pool")
async def scale_pool(services: Svc, body: PoolIn) -> PlacementOut:
    """Have so many actors share the tenants of plan `free`, from now until the platform is deployed anew, which sets
    `TENANTRY_POOL_SHARDS` again. Returns when they run; the tenants that belong elsewhere then go there by themselves
    while they are used: from n actors to n + 1, one tenant in n + 1.
    """
    return await _order(services, ScalePool(body.shards))


@keyed_writes.post("/pool/{shard}/move")
async def move_shard(
    services: Svc, shard: Annotated[int, Path(ge=0, lt=POOL_SHARDS_MAX)], body: MoveIn
) -> PlacementOut:
    """Move an actor of the pool to another node, with all the tenants it has, while they are used."""
    return await _order(services, MoveShard(shard, body.node))
