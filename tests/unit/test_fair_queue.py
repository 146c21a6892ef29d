"""Turns in proportion to weights, whatever waits."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.run.fair_queue import FairQueue


def drained(queue: FairQueue[str], count: int) -> list[str]:
    return [queue.pop() for _ in range(count)]


def test_a_flood_takes_no_more_than_its_share() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1_000):
        queue.push("flood", f"flood-{number}")
    drained(queue, 100)
    for number in range(10):
        queue.push("small", f"small-{number}")
    first = drained(queue, 20)
    assert sum(item.startswith("small") for item in first) == 10


def test_alone_a_tenant_gets_every_turn() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5):
        queue.push("only", number)
    assert [queue.pop() for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        queue.pop()


def test_a_pause_saves_up_no_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("early", "e")
    queue.pop()
    for _ in range(100):
        queue.push("busy", "b")
    drained(queue, 50)
    for _ in range(50):
        queue.push("early", "e")
    assert Counter(drained(queue, 20))["e"] in (9, 10, 11)


def test_within_a_tenant_priority_then_age() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, priority in (("a", 0), ("b", 5), ("c", 5), ("d", -1)):
        queue.push("t", item, priority=priority)
    assert drained(queue, 4) == ["b", "c", "a", "d"]


@given(st.dictionaries(st.sampled_from("abcde"), st.sampled_from([1.0, 2.0, 4.0]), min_size=2))
def test_turns_are_in_proportion_to_weights(weights: dict[str, float]) -> None:
    queue: FairQueue[str] = FairQueue()
    for tenant, weight in weights.items():
        for _ in range(400):
            queue.push(tenant, tenant, weight=weight)
    total, turns = sum(weights.values()), 300
    taken = Counter(drained(queue, turns))
    for tenant, weight in weights.items():
        assert abs(taken[tenant] - turns * weight / total) <= weight + 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=200))
def test_nothing_is_lost_or_doubled(steps: list[tuple[str, bool]]) -> None:
    queue: FairQueue[int] = FairQueue()
    pushed, popped = [], []
    for number, (tenant, is_pop) in enumerate(steps):
        if is_pop and len(queue):
            popped.append(queue.pop())
        else:
            queue.push(tenant, number)
            pushed.append(number)
    popped += [queue.pop() for _ in range(len(queue))]
    assert sorted(popped) == pushed


def test_memory_follows_who_waits() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(10_000):
        queue.push(f"t{number}", number)
        queue.pop()
    assert len(queue._passes) < 200
