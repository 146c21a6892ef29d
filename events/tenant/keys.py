"""API keys. ``digest`` is always the keyed hash of the secret; the secret itself never gets here.

``by_key`` names the tenant's own key that asks for the change; empty: an operator does.
"""

from events.messages import Command, Event, Personal, Query
from events.tenant.words import DEFAULT_SCOPES, Scope


class IssueKey(Command, frozen=True, tag="key.issue"):
    """``models``: the only ones it may call, None: all. ``expires_us``: 0 never. ``user_id``: whose key it is, empty: the
    tenant's own.
    """

    key_id: str
    name: str
    digest: bytes
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    models: tuple[str, ...] | None = None
    expires_us: int = 0
    user_id: str = ""
    by_key: str = ""


class RotateKey(Command, frozen=True, tag="key.rotate"):
    """Give the key a new secret. The one it has stays good for ``overlap_us``; one from before that ends now."""

    key_id: str
    digest: bytes
    overlap_us: int
    by_key: str = ""


class RevokeKey(Command, frozen=True, tag="key.revoke"):
    key_id: str
    by_key: str = ""


class ListKeys(Query, frozen=True, tag="key.list"):
    by_key: str = ""


class Authenticate(Query, frozen=True, tag="key.authenticate"):
    key_id: str
    digest: bytes


class KeyIssued(Event, frozen=True, tag="key.issued.v1"):
    key_id: str
    name: Personal
    digest: bytes
    issued_us: int
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    models: tuple[str, ...] | None = None
    expires_us: int = 0
    user_id: str = ""


class KeyRotated(Event, frozen=True, tag="key.rotated.v1"):
    """The secret before this one is good until ``old_until_us``."""

    key_id: str
    digest: bytes
    old_until_us: int
    rotated_us: int


class KeyRevoked(Event, frozen=True, tag="key.revoked.v1"):
    key_id: str


KeyCommand = IssueKey | RotateKey | RevokeKey | ListKeys | Authenticate
KeyEvent = KeyIssued | KeyRotated | KeyRevoked
