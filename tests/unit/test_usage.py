from events.tenant import ReservationExpired
from projections.model import Add
from projections.usage import Usage, UsageProjection, read_usage
from tests.kit.factories import created, record, reserved, settled

DAY = "2026-09-21"


def folded(*events: object) -> dict[tuple[str, str], Usage]:
    """The read model that the projection's writes leave behind."""
    fields: dict[bytes, int] = {}
    for event in events:
        for write in UsageProjection().apply("acme", record(event), event):  # type: ignore[arg-type]
            assert isinstance(write, Add)
            fields[write.field.encode()] = fields.get(write.field.encode(), 0) + write.amount
    return read_usage({field: str(amount).encode() for field, amount in fields.items()})


def test_a_settled_call_counts_by_day_and_model() -> None:
    assert folded(settled("a"), settled("b")) == {
        (DAY, "small"): Usage(requests=2, input_tokens=20, output_tokens=10, cost_nano_usd=120)
    }


def test_a_failed_call_is_no_request_but_what_it_used_is_booked() -> None:
    failed = settled("a", 9, outcome="failed", output_tokens=1, usage_source="estimated")
    assert folded(failed)[DAY, "small"] == Usage(failed=1, input_tokens=10, output_tokens=1, cost_nano_usd=9)


def test_an_expired_reservation_is_a_request_nobody_knows_more_about() -> None:
    expired = ReservationExpired("a", "k1", "small", 100)
    assert folded(expired)[DAY, "small"] == Usage(requests=1, unknown=1, cost_nano_usd=100)


def test_what_is_no_usage_changes_nothing() -> None:
    assert folded(created(), reserved()) == {}


def test_a_models_name_may_hold_the_separator() -> None:
    fields = {f"{DAY}|requests|a|b".encode(): b"3"}
    assert read_usage(fields) == {(DAY, "a|b"): Usage(requests=3)}
