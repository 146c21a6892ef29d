"""Words that several of a tenant's messages share, and the limits of names and ids.

Money is a whole number of nano-USD (1e-9 USD). A price of 0.10 USD per million tokens is 100 nano-USD per token, so
no call's cost is ever rounded; micro-USD would round most of them.
"""

import re
from typing import Literal

from events.errors import InvalidCommandError

Plan = Literal["free", "pro", "enterprise"]
Window = Literal["day", "week", "month", "total"]
Outcome = Literal["ok", "cancelled", "failed"]
# measured: the upstream said so; estimated: it broke off before it did; unknown: nobody can know, booked at the maximum
UsageSource = Literal["measured", "estimated", "unknown"]

# What a key may do. inference: call models; runs: start and steer runs; read: models, usage, events; admin: manage the
# tenant's own users and keys.
Scope = Literal["inference", "runs", "read", "admin"]
DEFAULT_SCOPES: tuple[Scope, ...] = ("inference", "runs", "read")

Role = Literal["admin", "user", "viewer"]
ROLE_SCOPES: dict[Role, frozenset[Scope]] = {
    "admin": frozenset(("inference", "runs", "read", "admin")),
    "user": frozenset(("inference", "runs", "read")),
    "viewer": frozenset(("read",)),
}

# Whom a budget or a limit is for: the whole tenant, or one of its users or keys, written ``user:<id>`` and ``key:<id>``.
TENANT_SCOPE = "tenant"
_SUBJECT = re.compile(r"tenant|(?:key|user):[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_USER_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


def check_name(kind: str, text: str) -> None:
    if not _PRINTABLE.fullmatch(text):
        raise InvalidCommandError(f"a {kind}'s name has 1 to 200 printable characters, got {text[:40]!r}")


def check_user_id(text: str) -> None:
    if not _USER_ID.fullmatch(text):
        raise InvalidCommandError(f"a user's id matches ^[a-z0-9][a-z0-9._-]{{0,63}}$, got {text[:80]!r}")


def check_subject(text: str) -> None:
    if not _SUBJECT.fullmatch(text):
        raise InvalidCommandError(f"a budget or limit is for tenant, key:<id> or user:<id>, got {text[:80]!r}")


def key_subject(key_id: str) -> str:
    return f"key:{key_id}"


def user_subject(user_id: str) -> str:
    return f"user:{user_id}"
