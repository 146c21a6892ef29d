"""What a tenant remembers: folded from its events, frozen, shared between versions."""

from collections.abc import Mapping

import msgspec

from actors.persistent import EMPTY, Map
from actors.policies.rate_limiter import FixedWindow, SlidingWindow, TokenBucket
from events.store import Placement
from events.tenant import (
    DEFAULT_SCOPES,
    TENANT_SCOPE,
    Limit,
    Plan,
    Role,
    Scope,
    Target,
    TokenPrice,
    Window,
    key_subject,
    user_subject,
)


class User(msgspec.Struct, frozen=True):
    name: str
    role: Role
    added_us: int


class Key(msgspec.Struct, frozen=True):
    """``old_digest`` is the secret before the last rotation, good until ``old_until_us``."""

    name: str
    digest: bytes
    issued_us: int
    revoked: bool = False
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    models: tuple[str, ...] | None = None
    expires_us: int = 0
    user_id: str = ""
    old_digest: bytes = bytes(32)
    old_until_us: int = 0
    rotated_us: int = 0


class Account(msgspec.Struct, frozen=True):
    """A budget and what has gone from it: ``spent_nano_usd`` in the window that starts at ``window_start_us``, and
    ``reserved_nano_usd`` for calls still open. No limit: it only counts.
    """

    limit_nano_usd: int | None = None
    soft_limit_nano_usd: int | None = None
    window: Window = "total"
    window_start_us: int = 0
    spent_nano_usd: int = 0
    reserved_nano_usd: int = 0
    warned_window_us: int = -1  # the window whose soft limit was reported
    since_version: int = 0  # of the tenant when it began to count anew

    @property
    def is_budget(self) -> bool:
        return self.limit_nano_usd is not None or self.soft_limit_nano_usd is not None


class Limits(msgspec.Struct, frozen=True):
    """A subject's limits with their counters; concurrency needs none but ``calls_open``. ``version``: of the tenant when
    they were set, so that calls from before give nothing back.
    """

    rules: tuple[Limit, ...]
    limiters: tuple[TokenBucket | FixedWindow | SlidingWindow | None, ...]
    calls_open: int
    version: int


class Reservation(msgspec.Struct, frozen=True):
    """``targets``: all models that may serve it, where there are several."""

    key_id: str
    model: str
    cost_max_nano_usd: int
    expires_us: int
    at_us: int
    version: int
    user_id: str = ""
    tokens_max: int = 0
    price: TokenPrice | None = None
    tags: Mapping[str, str] = {}
    targets: tuple[Target, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        return subjects_of(self.key_id, self.user_id)


class UnknownCall(msgspec.Struct, frozen=True):
    """A call that was booked at its maximum because nobody knew, and can be credited."""

    key_id: str
    model: str
    cost_nano_usd: int
    at_us: int
    version: int
    user_id: str = ""
    price: TokenPrice | None = None
    tags: Mapping[str, str] = {}
    targets: tuple[Target, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        return subjects_of(self.key_id, self.user_id)


class PriceTable(msgspec.Struct, frozen=True):
    version: int = 0
    prices: Mapping[str, TokenPrice] = {}


class Tenant(msgspec.Struct, frozen=True):
    """``version`` counts its events; ``clock_us`` is the latest time in them: decisions never go back behind it.

    ``account`` is the whole tenant's; ``accounts`` and ``limits`` are by subject (``key:<id>``, ``user:<id>``, and for
    limits ``tenant``). ``expiries``: when open reservations expire, and how many at each time.
    """

    version: int = 0
    name: str = ""
    plan: Plan = "free"
    created_us: int = 0
    is_suspended: bool = False
    erased_us: int = 0
    suspended_reason: str = ""
    users: Mapping[str, User] = {}
    keys: Mapping[str, Key] = {}
    account: Account = Account()
    accounts: Map[str, Account] = EMPTY
    limits: Map[str, Limits] = EMPTY
    price_table: PriceTable = PriceTable()
    clock_us: int = 0
    reservations: Map[str, Reservation] = EMPTY
    expiries: Mapping[int, int] = {}
    unknown_calls: Mapping[str, UnknownCall] = {}
    tag_values: Mapping[str, frozenset[str]] = {}

    @property
    def exists(self) -> bool:
        return self.version > 0

    @property
    def placement(self) -> Placement:
        return "pool" if self.plan == "free" else "silo"

    @property
    def next_timer_us(self) -> int:
        """When the first open reservation expires; 0 where none is open."""
        return min(self.expiries, default=0)

    def account_of(self, subject: str) -> Account | None:
        return self.account if subject == TENANT_SCOPE else self.accounts.get(subject)

    def now_us(self, now_us: int) -> int:
        """The time to decide with: a clock that was set back must not reopen a window that is over."""
        return max(now_us, self.clock_us)


def subjects_of(key_id: str, user_id: str) -> tuple[str, ...]:
    """Whose budgets and limits a call counts for."""
    if not key_id:
        return (TENANT_SCOPE,)
    if user_id:
        return (TENANT_SCOPE, key_subject(key_id), user_subject(user_id))
    return (TENANT_SCOPE, key_subject(key_id))
