"""The order of a lane, whatever the broker does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.lanes import Lane


def lane(*sequences: int) -> Lane[str]:
    found: Lane[str] = Lane()
    for sequence in sequences:
        found.arrive(sequence, f"m{sequence}")
    return found


def numbers(found: Lane[str], limit: int = 100) -> list[int]:
    return [sequence for sequence, _ in found.ready(limit)]


def test_messages_are_ready_in_their_order_whatever_the_order_they_came_in() -> None:
    assert numbers(lane(5, 3, 9, 4)) == [3, 4, 5, 9]
    assert numbers(lane(5, 3, 9, 4), 2) == [3, 4]


def test_nothing_passes_what_was_given_back() -> None:
    """What comes later is held, until what was given back has come again, in whatever order."""
    found = lane(1, 2, 3)
    assert found.park(keep=1) == ["m2", "m3"]
    found.arrive(4, "m4")
    assert numbers(found) == [1]
    found.settle([1])
    found.arrive(3, "m3")
    assert numbers(found) == []
    found.arrive(2, "m2")
    assert numbers(found) == [2, 3, 4]


def test_a_redelivery_takes_the_place_of_its_older_self() -> None:
    found = lane(1, 2)
    found.arrive(1, "again")
    assert found.ready(9) == [(1, "again"), (2, "m2")]
    assert found.held == 2


def test_what_was_settled_out_of_order_does_not_come_back_by_itself() -> None:
    found = lane(1, 2, 3)
    found.settle([2])
    assert numbers(found) == [1, 3]
    found.settle([1, 3])
    assert found.is_empty


@given(st.data())
def test_every_message_is_settled_once_and_in_order_however_often_some_are_given_back(data: st.DataObject) -> None:
    """A broker that redelivers in any order, a lane that gives back at any time: the order settled is the queue's."""
    found: Lane[str] = Lane()
    coming, away, settled = list(range(1, data.draw(st.integers(1, 30)) + 1)), set[int](), list[int]()
    for _ in range(200):
        match data.draw(st.sampled_from(["arrive", "return", "settle", "park"])):
            case "arrive" if coming:
                sequence = coming.pop(0)
                found.arrive(sequence, f"m{sequence}")
            case "return" if away:
                sequence = data.draw(st.sampled_from(sorted(away)))
                away.discard(sequence)
                found.arrive(sequence, f"m{sequence}")
            case "settle":
                done = numbers(found, data.draw(st.integers(1, 5)))
                found.settle(done)
                settled += done
            case "park":
                away |= {int(message[1:]) for message in found.park(data.draw(st.integers(0, 3)))}
    assert settled == sorted(settled)
    assert found.held + found.parked + len(settled) + len(coming) == len(coming) + found.held + len(away) + len(settled)
    assert settled == list(range(1, len(settled) + 1))


@pytest.mark.parametrize("keep", [0, 2, 5])
def test_giving_back_keeps_the_earliest(keep: int) -> None:
    found = lane(1, 2, 3, 4)
    found.park(keep)
    assert numbers(found) == [1, 2, 3, 4][:keep]
    assert found.parked == max(0, 4 - keep)
