"""Several commands in one message: in order, answered together, or not at all."""

import msgspec
import pytest

from actors.batches import Batches
from events.envelope import Batch, Envelope, Ok, decode_replies, encode, is_batch


class Tenant:
    """An activation's mailbox."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.mailbox: list[tuple[bytes, str]] = []
        self.batches = Batches(lambda reply_to, data: self.sent.append((reply_to, data)))
        self.deliver = self.batches.unpack(lambda data, reply_to: self.mailbox.append((data, reply_to)))

    def answer(self, number: int, position: int) -> None:
        self.batches.respond(self.mailbox[number][1], encode(Ok(None, position)))


@pytest.fixture
def tenant() -> Tenant:
    return Tenant()


def test_commands_come_in_order_and_their_answers_go_together(tenant: Tenant) -> None:
    tenant.deliver(encode(Batch([b"a", b"b", b"c"])), "inbox")
    assert [data for data, _ in tenant.mailbox] == [b"a", b"b", b"c"]
    for number in (1, 0, 2):
        assert tenant.sent == []
        tenant.answer(number, position=number + 1)
    ((reply_to, data),) = tenant.sent
    assert reply_to == "inbox"
    assert decode_replies(data) == [Ok(None, 1), Ok(None, 2), Ok(None, 3)]


def test_single_commands_pass_through(tenant: Tenant) -> None:
    envelope = encode(Envelope("id", "acme", "me", 1, "", "", msgspec.Raw(encode({"type": "x"}))))
    assert not is_batch(envelope)
    for data in (envelope, b"", b"\xc1", encode(Batch([]))[:-1] + b"\xc1"):
        tenant.deliver(data, "inbox")
        assert tenant.mailbox[-1] == (data, "inbox")
    tenant.answer(0, 7)
    assert tenant.sent == [("inbox", encode(Ok(None, 7)))]


def test_a_batch_that_is_never_complete_is_forgotten_at_last(tenant: Tenant) -> None:
    """And an answer that still comes for it goes nowhere."""
    for number in range(200):
        tenant.deliver(encode(Batch([b"a", b"b"])), f"inbox{number}")
    tenant.answer(0, 1)
    tenant.answer(1, 2)
    assert tenant.sent == []
    tenant.answer(398, 3)
    tenant.answer(399, 4)
    assert [reply_to for reply_to, _ in tenant.sent] == ["inbox199"]
