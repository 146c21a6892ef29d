"""What a breaker remembers, against a plain list of all calls."""

from hypothesis import given
from hypothesis import strategies as st

from actors.policies.window import SLOTS, Counts, CountWindow, TimeWindow

calls = st.lists(st.tuples(st.floats(0, 4), st.booleans(), st.booleans()), max_size=60)
Calls = list[tuple[float, bool, bool]]


@given(calls, st.integers(1, 20))
def test_a_count_window_holds_exactly_the_last_calls(schedule: Calls, size: int) -> None:
    window = CountWindow(size)
    for pause_s, failed, slow in schedule:
        window = window.add(failed=failed, slow=slow, now_s=pause_s)
    last = schedule[-size:]
    assert window.counts(0.0) == Counts(len(last), sum(f for _, f, _ in last), sum(s for _, _, s in last))


@given(calls, st.floats(0, 30))
def test_a_time_window_holds_what_is_younger_and_nothing_much_older(schedule: Calls, later_s: float) -> None:
    window_s, now_s = 10.0, 1_790_000_000.0
    window, seen = TimeWindow(window_s), []
    for pause_s, failed, slow in schedule:
        now_s += pause_s
        window = window.add(failed=failed, slow=slow, now_s=now_s)
        seen.append((now_s, failed))
    now_s += later_s
    counts = window.counts(now_s)
    surely = [failed for at, failed in seen if now_s - at < window_s * (SLOTS - 1) / SLOTS]
    perhaps = [failed for at, failed in seen if now_s - at <= window_s]
    assert len(surely) <= counts.calls <= len(perhaps)
    assert sum(surely) <= counts.failures <= sum(perhaps)
    assert len(window.slots) <= SLOTS


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_batches_add_up(batches: list[tuple[int, int]]) -> None:
    window = TimeWindow(10.0)
    for good, bad in batches:
        window = window.merged(Counts(good + bad, bad), 5.0)
    assert window.counts(5.0) == Counts(sum(g + b for g, b in batches), sum(b for _, b in batches))
