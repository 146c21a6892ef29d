"""The Ray cluster as Ray tells of it: which nodes there are, which are to be left, which actors run where."""

import msgspec
import ray
from ray._private import state
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from actors.supervision.homes import is_tenant_actor
from events.errors import NotFoundError, NotPlacedError
from events.process import NAMESPACE

_HEAD = "node:__internal_head__"
_DRAIN_PREEMPTION = 2  # a reason that autoscaler.proto knows: Ray takes it even where actors run
_GCS_TIMEOUT_S = 5.0
_POOL_SHARDS = b"pool_shards"


class Node(msgspec.Struct, frozen=True):
    """``actors`` are the tenants' actors that run there, by name. Ray puts nothing new on a node that is ``draining``."""

    id: str
    address: str
    is_head: bool
    draining: bool
    actors: list[str]


class Cluster:
    """Each call blocks for a question to Ray's control store (GCS). Raises RuntimeError (Ray's RpcError) where that does
    not answer.
    """

    def __init__(self) -> None:
        self._gcs = GcsClient(address=ray.get_runtime_context().gcs_address)

    def nodes(self) -> list[Node]:
        """Those that are alive, the head first."""
        leaving, actors = self.draining(), _actors_by_node()
        found = [
            Node(
                row["NodeID"],
                row["NodeManagerAddress"],
                _HEAD in row["Resources"],
                row["NodeID"] in leaving,
                sorted(actors.get(row["NodeID"], [])),
            )
            for row in ray.nodes()  # type: ignore[no-untyped-call]
            if row["Alive"]
        ]
        return sorted(found, key=lambda node: (not node.is_head, node.id))

    def draining(self) -> set[str]:
        """Ids of the nodes that somebody asked Ray to drain: ``drain``, ``ray drain-node``, an autoscaler."""
        return set(self._gcs.get_draining_nodes(timeout=_GCS_TIMEOUT_S))

    def drain(self, node_id: str) -> None:
        """Have Ray put nothing new on the node. What runs there goes on, and there is no way back but the node's restart.

        Raises:
            NotFoundError: No such node is alive.
            NotPlacedError: It is the head, with which the cluster would end; or Ray says no.
        """
        node = find(self.nodes(), node_id)
        if node.is_head:
            raise NotPlacedError(f"node {node.id[:12]} is the cluster's head: the cluster ends with it")
        is_accepted, why = self._gcs.drain_node(node.id, _DRAIN_PREEMPTION, "tenantry node drain", 0)
        if not is_accepted:
            raise NotPlacedError(f"Ray does not drain node {node.id[:12]}: {why}")

    def keep_pool_shards(self, number: int) -> None:
        """Remember how many actors the pool has, for as long as the actors live."""
        self._gcs.internal_kv_put(
            _POOL_SHARDS, b"%d" % number, overwrite=True, namespace=NAMESPACE.encode(), timeout=_GCS_TIMEOUT_S
        )

    def pool_shards(self) -> int | None:
        """None: nobody has changed it since Ray started."""
        kept = self._gcs.internal_kv_get(_POOL_SHARDS, namespace=NAMESPACE.encode(), timeout=_GCS_TIMEOUT_S)
        return int(kept) if kept is not None else None


def _actors_by_node() -> dict[str, list[str]]:
    by_node: dict[str, list[str]] = {}
    for row in state.actors(actor_state_name="ALIVE").values():
        if is_tenant_actor(row["Name"]):
            by_node.setdefault(row["Address"]["NodeID"], []).append(row["Name"])
    return by_node


def find(among: list[Node], node_id: str) -> Node:
    """By the id, or its beginning where that is only one's. Raises NotFoundError."""
    found = [node for node in among if node.id.startswith(node_id)]
    if not node_id or len(found) != 1:
        raise NotFoundError("node", node_id or "(none)")
    return found[0]
