"""Whatever others hold, who comes next finds a place."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.fair_share import FairShare
from serve.http_errors import HttpError


def take_all(shares: FairShare, tenant: str, stack: ExitStack) -> int:
    """As many places as it gets."""
    for taken in range(10_000):
        try:
            stack.enter_context(shares.place(tenant))
        except HttpError:
            return taken
    raise AssertionError("there is no end to it")


def test_alone_a_tenant_gets_three_quarters_and_is_told_to_wait_a_little() -> None:
    shares = FairShare(1_000)
    with ExitStack() as stack:
        assert take_all(shares, "loud", stack) == 750
        with pytest.raises(HttpError) as refusal, shares.place("loud"):
            pass
    assert (refusal.value.status, refusal.value.retry_after_s) == (429, 1.0)


@given(st.integers(20, 2_000), st.integers(1, 4))
def test_after_greedy_ones_the_next_finds_a_place(places: int, greedy: int) -> None:
    shares = FairShare(places)
    with ExitStack() as stack:
        for number in range(greedy):
            take_all(shares, f"greedy-{number}", stack)
        if places > 4**greedy:
            assert take_all(shares, "quiet", stack) >= 1


def test_what_is_given_back_can_be_had_again() -> None:
    shares = FairShare(4)
    for _ in range(10):
        with ExitStack() as stack:
            assert take_all(shares, "acme", stack) == 3


def test_with_every_place_held_it_is_ours_to_say_sorry() -> None:
    shares = FairShare(1)
    with shares.place("a"), pytest.raises(HttpError) as refusal, shares.place("b"):
        pass
    assert refusal.value.status == 503
