"""Planned moves, with stand-ins for Ray's actors and nodes."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from actors.supervision.homes import ActorName
from actors.supervision.moves import Moves
from actors.supervision.placement import (
    AnyOrder,
    DrainNode,
    MoveShard,
    MoveTenant,
    NotPlaced,
    Placed,
    ScalePool,
    ShowPlacement,
    decode_answer,
    encode,
)
from events.errors import NotFoundError, NotPlacedError, NotServedError
from tests.kit.cluster import A, B, C, FakeCluster


@pytest.fixture
async def world() -> FakeCluster:
    tenants = {"pool-0": {f"t{number}" for number in range(40)}, "silo-acme": {"acme"}}
    return FakeCluster({"pool-0": A, "silo-acme": A}, tenants)


@pytest.fixture
async def moves(world: FakeCluster) -> Moves:
    return world.moves()


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(30):
        while not await holds():  # noqa: ASYNC110 - it looks once a second, and tells nobody
            await asyncio.sleep(0.01)


async def is_moving(moves: Moves) -> list[str]:
    return (await moves.do(ShowPlacement())).moving


async def test_an_actor_moves_with_its_tenants_and_the_one_before_ends(world: FakeCluster, moves: Moves) -> None:
    placed = await moves.do(MoveShard(0, B))
    assert (world.on(A), world.on(B)) == (["silo-acme"], ["pool-0.1"])
    assert len(world.tenants["pool-0.1"]) == 40
    assert placed == Placed(world.nodes(), 1, [])


async def test_a_tenant_with_an_actor_of_its_own_moves_there_and_back(world: FakeCluster, moves: Moves) -> None:
    await moves.do(MoveTenant("acme", "bb"))
    assert world.on(B) == ["silo-acme.1"]
    await moves.do(MoveTenant("acme", "bb"))
    assert world.on(B) == ["silo-acme.1"], "it is there"
    await moves.do(MoveTenant("acme", A))
    assert world.on(A) == ["pool-0", "silo-acme.2"]


@pytest.mark.parametrize(
    ("order", "error", "says"),
    [
        (MoveTenant("t1", B), NotPlacedError, "tenantry pool move pool-0"),
        (MoveTenant("nobody", B), NotFoundError, "tenant 'nobody'"),
        (MoveTenant("acme", "dddd"), NotFoundError, "node 'dddd'"),
        (MoveTenant("acme", C), NotPlacedError, "being drained"),
        (MoveShard(1, B), NotFoundError, "'pool-1'"),
        (ScalePool(0), NotPlacedError, "1 to 1000"),
        (ScalePool(1_001), NotPlacedError, "1 to 1000"),
    ],
)
async def test_what_can_not_be_done_is_refused_and_changes_nothing(
    world: FakeCluster, moves: Moves, order: AnyOrder, error: type[Exception], says: str
) -> None:
    world.leaving_nodes = {C}
    before = dict(world.places)
    with pytest.raises(error, match=says):
        await moves.do(order)
    assert (world.places, world.homes.pool_shards, world.kept) == (before, 1, [])


async def test_where_the_other_actor_can_not_be_started_everybody_stays(world: FakeCluster, moves: Moves) -> None:
    world.fails = [NotServedError("acme", "no room")]
    with pytest.raises(NotServedError):
        await moves.do(MoveTenant("acme", B))
    assert world.tenants["silo-acme"] == {"acme"}
    assert (await moves.do(ShowPlacement())).moving == []
    await moves.do(MoveTenant("acme", B))
    assert world.on(B) == ["silo-acme.1"]


async def test_who_asks_again_waits_for_the_same_move_and_who_asks_otherwise_is_refused(
    world: FakeCluster, moves: Moves
) -> None:
    world.can_start.clear()
    asked = [asyncio.create_task(moves.do(MoveTenant("acme", B))) for _ in range(2)]
    await until(lambda: is_moving(moves))
    with pytest.raises(NotPlacedError, match="on its way to node bbbb"):
        await moves.do(MoveTenant("acme", C))
    asked[0].cancel()  # who asked has gone; the move has not
    world.can_start.set()
    await asked[1]
    assert world.on(B) == ["silo-acme.1"]


async def test_a_pool_that_grows_starts_its_actors_and_then_moves_who_belongs_there(
    world: FakeCluster, moves: Moves
) -> None:
    await moves.do(ScalePool(3))
    assert world.kept == [3]
    await moves.settle()
    assert sum(map(len, world.tenants.values())) == 41
    for name in ("pool-0", "pool-1", "pool-2"):
        assert world.tenants[name], name
        assert not await world.leaving(name)


async def test_a_pool_that_shrinks_ends_the_actors_that_are_too_many_when_they_are_empty(
    world: FakeCluster, moves: Moves
) -> None:
    await moves.do(ScalePool(3))
    await moves.settle()
    await moves.do(ScalePool(1))
    await moves.settle()
    assert world.names() == ["pool-0", "silo-acme"]
    assert len(world.tenants["pool-0"]) == 40
    assert world.kept == [3, 1]


async def test_an_upgrade_starts_every_actor_anew_and_none_twice(world: FakeCluster, moves: Moves) -> None:
    names = world.names()
    await moves.do(MoveTenant("acme", B))
    await moves.renew(names)
    assert world.names() == ["pool-0.1", "silo-acme.1"]
    assert len(world.tenants["pool-0.1"]) == 40
    assert (await moves.do(ShowPlacement())).moving == []


async def test_a_defect_is_an_answer_too(world: FakeCluster, moves: Moves) -> None:
    world.fails = [ZeroDivisionError()]
    answer = decode_answer(await moves.answer(encode(MoveTenant("acme", B))))
    assert isinstance(answer, NotPlaced)
    assert answer.code == "internal_error"


async def test_the_scale_it_has_is_not_kept_again(world: FakeCluster, moves: Moves) -> None:
    await moves.do(ScalePool(1))
    assert world.kept == []


async def test_a_scale_whose_actors_can_not_be_started_is_not_kept(world: FakeCluster, moves: Moves) -> None:
    world.fails = [NotServedError("pool-1", "no room")]
    with pytest.raises(NotServedError):
        await moves.do(ScalePool(2))
    assert (world.homes.pool_shards, world.kept) == (1, [])


async def test_a_supervisor_goes_on_where_one_died_in_the_middle_of_a_move(world: FakeCluster) -> None:
    """The successor runs, half of the tenants have gone there, and nobody else knows."""
    world.places["pool-0.1"], world.tenants["pool-0.1"] = B, {"t1"}
    world.tenants["pool-0"].discard("t1")
    world.homes.succeeded(map(ActorName.parse, world.names()))
    await world.moves().settle()
    assert world.names() == ["pool-0.1", "silo-acme"]
    assert len(world.tenants["pool-0.1"]) == 40


async def test_actors_leave_a_node_that_drains_for_those_that_have_fewest(world: FakeCluster, moves: Moves) -> None:
    world.places["silo-other"], world.tenants["silo-other"] = C, {"other"}
    await moves.do(DrainNode(A))
    leaving = asyncio.create_task(moves.leave_draining_nodes())

    async def has_left() -> bool:
        return not world.on(A) and not await is_moving(moves)

    await until(has_left)
    leaving.cancel()
    assert sorted(map(len, (world.on(B), world.on(C)))) == [1, 2]


async def test_where_every_node_drains_actors_stay_and_it_is_said(
    world: FakeCluster, moves: Moves, caplog: pytest.LogCaptureFixture
) -> None:
    world.leaving_nodes = {A, B, C}
    leaving = asyncio.create_task(moves.leave_draining_nodes())

    async def was_said() -> bool:
        return "nowhere_to_go actors=2" in caplog.text

    await until(was_said)
    leaving.cancel()
    assert world.on(A) == ["pool-0", "silo-acme"]
