"""Several commands in one message, several replies in one: how a relay has a tenant decide what waits, in order.

Commands of a batch go into the mailbox one behind the other without a pause, so nothing gets between them, and where the
mailbox has no room left, none behind that gets in either.
"""

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from events.envelope import decode_batch, encode, is_batch

_OPEN_MAX = 64  # a batch that lost a command to its deadline is never complete: the oldest is forgotten

Deliver = Callable[[bytes, str], None]
Respond = Callable[[str, bytes], None]


class Batches:
    """Stands between one tenant's subject and its activation."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._open: OrderedDict[str, list[bytes | None]] = OrderedDict()

    def unpack(self, deliver: Deliver) -> Deliver:
        """The handler for the tenant's subject; ``deliver`` gets single commands."""

        def handle(data: bytes, reply_to: str) -> None:
            if not is_batch(data):
                deliver(data, reply_to)
                return
            try:
                envelopes = decode_batch(data).envelopes
            except msgspec.DecodeError:
                deliver(data, reply_to)  # is told what is wrong with it
                return
            self._open[reply_to] = [None] * len(envelopes)
            while len(self._open) > _OPEN_MAX:
                self._open.popitem(last=False)
            for number, envelope in enumerate(envelopes):
                deliver(envelope, f"{reply_to} {number}")

        return handle

    def respond(self, reply_to: str, data: bytes) -> None:
        """A reply of the activation: on its way, or into its batch, which goes when it is complete."""
        batch, _, number = reply_to.partition(" ")
        if not number:
            self._respond(reply_to, data)
            return
        replies = self._open.get(batch)
        if replies is None:
            return  # so old that its relay has asked again
        replies[int(number)] = data
        if None not in replies:
            del self._open[batch]
            self._respond(batch, encode(replies))
