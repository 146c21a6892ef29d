import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import KeyRefusedError
from serve.keys import _checksum, digest_of, make_key, parse_key

PEPPER = "a pepper of more than thirty-two characters"


def test_a_key_leads_to_its_tenant_and_shows_nothing_in_logs() -> None:
    key = make_key(PEPPER, "acme-co-2", "command-1")
    assert parse_key(key.text) == key
    assert key.tenant == "acme-co-2"
    secret = key.text.split("-")[-2]
    assert len(secret) == 43
    assert secret not in repr(key)


def test_the_same_idempotency_key_issues_the_same_key_and_any_other_another() -> None:
    key = make_key(PEPPER, "acme", "c1")
    assert make_key(PEPPER, "acme", "c1") == key
    others = [make_key(PEPPER, "acme", "c2"), make_key(PEPPER, "bcme", "c1"), make_key(PEPPER + "x", "acme", "c1")]
    others += [make_key(PEPPER, "acme", None), make_key(PEPPER, "acme", None)]
    assert len({key.text.split("-")[-2], *(other.text.split("-")[-2] for other in others)}) == 6


def test_a_digest_depends_on_every_part_of_the_key_and_on_the_pepper() -> None:
    key, other = make_key(PEPPER, "acme", "c1"), make_key(PEPPER, "acme", "c2")
    assert len({digest_of(PEPPER, key), digest_of(PEPPER, other), digest_of(PEPPER + "x", key)}) == 3


@given(st.integers(0, 200), st.characters())
def test_one_changed_character_is_noticed(at: int, character: str) -> None:
    text = make_key(PEPPER, "acme", "c1").text
    changed = text[: at % len(text)] + character + text[at % len(text) + 1 :]
    if changed != text:
        with pytest.raises(KeyRefusedError):
            parse_key(changed)


@given(st.text(max_size=300))
def test_no_text_but_a_key_is_one(text: str) -> None:
    with pytest.raises(KeyRefusedError):
        parse_key(text)


@pytest.mark.parametrize(
    "head", ["", "sk", "sk-a", "sk-demo-x", "sk--x-y", "sk-demo-" + "a" * 12 + "-b", "pk-demo-a-b"]
)
def test_a_right_checksum_alone_makes_no_key(head: str) -> None:
    with pytest.raises(KeyRefusedError):
        parse_key(f"{head}-{_checksum(head)}")
