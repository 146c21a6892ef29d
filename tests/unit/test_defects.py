"""What is told of a defect where others read it."""

from events.defects import described


def broken(name: str) -> None:
    raise ValueError(f"{name} is no number")


def test_it_says_what_and_where_and_nothing_of_what_was_worked_on() -> None:
    try:
        broken("Ada Lovelace")
    except ValueError as error:
        told = described(error)
    assert told.startswith("ValueError at tests/unit/test_defects.py:")
    assert told.endswith(" in broken")
    assert "Ada" not in told


def test_what_was_never_raised_has_no_place() -> None:
    assert described(KeyError("secret")) == "KeyError"
