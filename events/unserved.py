"""Why nobody serves a tenant: what the supervisor answers to who asks for it. No answer at all is a time-out, an empty one
says that it is served.
"""

import msgspec

from events.errors import NotServedError, TenantErasedError, UnservableError


class Unserved(msgspec.Struct, frozen=True):
    """``message`` is for clients of the tenant, too. ``is_final``: to ask again is of no use before ``retry_after_s`` is
    over; None: before a person has looked.
    """

    code: str
    message: str
    is_final: bool = False
    retry_after_s: float | None = None

    def error(self, tenant: str) -> NotServedError | TenantErasedError:
        """What to raise where time runs out, or at once where it is final."""
        if self.code == TenantErasedError.code:
            return TenantErasedError(self.message)
        if self.is_final and self.retry_after_s is None:
            return UnservableError(tenant, self.message)
        return NotServedError(tenant, self.message, self.retry_after_s)


_decode = msgspec.json.Decoder(Unserved).decode


def encode_unserved(problem: Unserved | None) -> bytes:
    return b"" if problem is None else msgspec.json.encode(problem)


def decode_unserved(data: bytes) -> Unserved | None:
    """Also the bare text that supervisors of the release before answer, while an upgrade is under way."""
    if not data:
        return None
    try:
        return _decode(data)
    except msgspec.DecodeError:
        text = data.decode(errors="replace")
        return Unserved(text, text, is_final=text == TenantErasedError.code)
