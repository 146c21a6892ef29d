"""What operators ask the root supervisor about where tenants' actors run, over core NATS: MessagePack, request/reply.

Every answer is the placement as it is afterwards, or the refusal. An order may be repeated as long as there is no answer:
whoever is on the way is waited for, whoever is there stays. A move that was begun goes on where nobody waits for it.
"""

import msgspec

from actors.supervision.cluster import Node

PLACEMENT = "supervisor.placement"


class Order(msgspec.Struct, frozen=True, tag_field="order"):
    """Nodes go by their id, or by the beginning of it."""


class ShowPlacement(Order, frozen=True, tag="show"):
    pass


class MoveTenant(Order, frozen=True, tag="move_tenant"):
    """A tenant with an actor of its own."""

    tenant: str
    node: str


class MoveShard(Order, frozen=True, tag="move_shard"):
    """An actor of the pool, with all the tenants it has."""

    shard: int
    node: str


class DrainNode(Order, frozen=True, tag="drain"):
    """Ray puts nothing new there, and the tenants' actors leave it."""

    node: str


class ScalePool(Order, frozen=True, tag="scale"):
    shards: int


AnyOrder = ShowPlacement | MoveTenant | MoveShard | DrainNode | ScalePool


class Placed(msgspec.Struct, frozen=True, tag="placed"):
    """``moving``: actors whose tenants are on their way to another one."""

    nodes: list[Node]
    pool_shards: int
    moving: list[str]


class NotPlaced(msgspec.Struct, frozen=True, tag="not_placed"):
    code: str
    message: str


Answer = Placed | NotPlaced

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(AnyOrder).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
