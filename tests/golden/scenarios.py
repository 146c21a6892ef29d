"""What the golden histories tell: per family a log with every kind of event in it. Add to the end of one, or change it
with the release; recorded files stay as they are.
"""

import msgspec
from msgspec.structs import replace

from actors.run.state import Run, Step
from events.catalog import DomainEvent
from events.run import (
    CancelRequested,
    CompensationStuck,
    RetryRule,
    RunBlocked,
    RunEnded,
    RunFailing,
    RunPatched,
    RunReopened,
    RunsCapped,
    RunStarted,
    RunUnblocked,
    SignalReceived,
    StepFailed,
    StepKept,
    StepOrder,
    StepQueued,
    StepRequeued,
    StepScheduled,
    StepSkipped,
    StepSucceeded,
    Used,
    pack,
)
from events.system import (
    BreakerChanged,
    BreakerForced,
    BulkheadChanged,
    SupervisorStarted,
    TenantQuarantined,
    TenantReleased,
)
from events.tenant import (
    Attempt,
    BudgetRemoved,
    BudgetSet,
    CallCredited,
    CallReserved,
    CallSettled,
    CommandNoted,
    KeyIssued,
    KeyRevoked,
    KeyRotated,
    Limit,
    LimitsSet,
    PlanChanged,
    PricesSet,
    ReservationExpired,
    Route,
    SoftBudgetReached,
    Target,
    TenantCreated,
    TenantErased,
    TenantResumed,
    TenantSuspended,
    TokenPrice,
    UserAdded,
    UserChanged,
    UserRemoved,
)
from events.tools import ToolCalled, ToolFailed, ToolPayloadKept, ToolsAllowed, ToolSucceeded

START_US = 1_793_000_000_000_000  # 2026-10-26, a Monday
MINUTE_US = 60_000_000
PRICE = TokenPrice(100, 400, "2")
TAGS = {"team": "billing"}


def _reserved(call: str, minute: int, *, user: str = "") -> CallReserved:
    at_us = START_US + minute * MINUTE_US
    return CallReserved(call, "k1", "small", 500_000, at_us + 5 * MINUTE_US, START_US, at_us, user, 2_000, PRICE, TAGS)


def _settled(call: str, source: str, *, outcome: str = "ok", user: str = "") -> CallSettled:
    plain = {
        "type": "call.settled.v1", "reservation_id": call, "key_id": "k1", "model": "small", "input_tokens": 900,
        "output_tokens": 100, "cost_nano_usd": 130_000, "outcome": outcome, "usage_source": source, "user_id": user,
        "tags": TAGS,
    }  # fmt: skip
    return msgspec.convert(plain, CallSettled)


TENANT: list[DomainEvent] = [
    TenantCreated("Acme Ltd", "free", START_US),
    PlanChanged("pro"),
    KeyIssued("k1", "Ann's laptop", b"1" * 32, START_US, ("inference", "read"), ("small",), START_US * 2, "ann"),
    KeyIssued("k2", "spare", b"2" * 32, START_US),
    KeyRotated("k1", b"3" * 32, START_US + 60 * MINUTE_US, START_US + MINUTE_US),
    UserAdded("ann", "Ann Example", "user", START_US),
    UserAdded("bob", "Bob Example", "viewer", START_US),
    UserChanged("ann", "Ann Sample", "admin"),
    BudgetSet(1_000_000_000, "month", 300_000, set_us=START_US),
    BudgetSet(5_000_000, "day", None, "user:ann", START_US),
    BudgetSet(None, "total", 1, "key:k2", START_US),
    LimitsSet(
        (Limit("requests", 60), Limit("tokens", 9_000, 60, "sliding_window"), Limit("concurrency", 4)),
        "tenant",
        START_US,
    ),
    LimitsSet(
        (Limit("requests", 10, 1, "fixed_window"), Limit("tokens", 900, 60, "token_bucket", 90)), "key:k1", START_US
    ),
    PricesSet({"small": PRICE}, 2),
    _reserved("c1", 1, user="ann"),
    _settled("c1", "measured", user="ann"),
    _reserved("c2", 2),
    _settled("c2", "unknown", outcome="cancelled"),
    CallCredited("c2", "k1", "small", 80_000, 300, 20, "the provider's bill says so", "", TAGS),
    _reserved("c3", 3),
    ReservationExpired("c3", "k1", "small", 500_000, "", TAGS),
    SoftBudgetReached("tenant", START_US, 630_000, 300_000),
    _reserved("c4", 4),
    _settled("c4", "estimated", outcome="failed"),
    _reserved("c5", 5),  # open at the end
    replace(
        _reserved("c6", 5),
        targets=(Target("small", 900, 1_024, PRICE), Target("large", 900, 2_048, TokenPrice(1_000, 4_000, "2"))),
        route=Route(("small-a", "small-b", "large"), "least busy, 3 under way; 1 away", 0.5),
    ),
    replace(
        _settled("c6", "measured"),
        model="large",
        asked_model="small",
        attempts=(Attempt("small-a", "small", "upstream_error", 12), Attempt("large", "large", "ok", 840)),
    ),
    replace(_reserved("c7", 6), cost_max_nano_usd=0, tokens_max=0, price=None),
    replace(_settled("c7", "measured"), input_tokens=0, output_tokens=0, cost_nano_usd=0, from_cache=True),
    BudgetRemoved("user:ann"),
    BudgetRemoved("tenant"),
    LimitsSet((), "key:k1", START_US + MINUTE_US),
    KeyRevoked("k2"),
    UserRemoved("bob"),
    TenantSuspended("unpaid since March", START_US + 7 * MINUTE_US),
    TenantResumed(),
    CommandNoted(),
    TenantSuspended("again", START_US + 8 * MINUTE_US),
    TenantErased(START_US + 9 * MINUTE_US),
]

RULE = RetryRule(5, 2_000_000, 3.0, 30_000_000, ("card_declined",))


def _order(step: str, undoes: str = "", *, kind: str = "tool", target: str = "stock") -> StepOrder:
    return msgspec.convert(
        {"step": step, "kind": kind, "target": target, "timeout_us": 30_000_000, "retry": RULE, "undoes": undoes}
        | ({"is_optional": True} if step == "email" else {}),
        StepOrder,
        from_attributes=True,
    )


def _scheduled(run: str, step: str, attempt: int = 1, undoes: str = "") -> StepScheduled:
    return StepScheduled(run, _order(step, undoes), pack({"of": step}), attempt, START_US + attempt)


def _succeeded(run: str, step: str, attempt: int = 1) -> StepSucceeded:
    return StepSucceeded(run, step, attempt, pack([step, "done"]), 1_500, Used(700, 30, 4))


def _failed(run: str, step: str, attempt: int, retry_at_us: int) -> StepFailed:
    return StepFailed(run, step, attempt, "busy", "Ann's card is slow", retry_at_us, 900, Used(10), bool(retry_at_us))


STUCK = Run(
    id="r2", saga="order", version=3, status="failed", input=pack({"sku": "robe"}), started_us=START_US,
    ended_us=START_US + 9, failing=RunFailing("r2", "declined", "no money", "compensated"), code="declined",
    steps={"reserve": Step("stuck", _order("undo:reserve", "reserve"), pack(1), 5)},
)  # fmt: skip

RUNS: list[DomainEvent] = [
    TenantCreated("Runs Ltd", "enterprise", START_US),
    RunStarted("r1", "order", 3, pack({"sku": "robe"}), START_US, 5, START_US + MINUTE_US, "r0", "k1", TAGS, "r9"),
    StepKept("r1", _order("look"), pack("look"), pack("kept")),
    _scheduled("r1", "reserve"),
    StepRequeued("r1", "reserve", START_US + 5),
    _failed("r1", "reserve", 1, START_US + 77),
    _scheduled("r1", "reserve", 2),
    _succeeded("r1", "reserve", 2),
    StepScheduled("r1", _order("paid", kind="signal", target="payment"), b"", 1, START_US),
    SignalReceived("r1", "payment", pack({"card": "4242"})),
    SignalReceived("r1", "other", pack("kept until a step waits for it")),
    _succeeded("r1", "paid"),
    _scheduled("r1", "ship"),
    StepQueued("r1", _order("email", target="mail"), pack("Dear Ann")),
    StepSkipped("r1", "email"),
    RunBlocked("r1", "saga 'order' version 3 is registered nowhere"),
    RunUnblocked("r1"),
    CancelRequested("r1", "Ann has changed her mind"),
    _failed("r1", "ship", 1, 0),
    RunFailing("r1", "cancelled", "Ann has changed her mind", "cancelled"),
    _scheduled("r1", "undo:reserve", undoes="reserve"),
    _failed("r1", "undo:reserve", 1, 0),
    CompensationStuck("r1", "undo:reserve", "the warehouse of Ann does not answer"),
    RunStarted("r2", "order", 3, pack({"sku": "robe"}), START_US),
    RunEnded("r2", "failed", START_US + 9, b"", "declined", "no money"),
    RunReopened("r2", ("reserve",), False, pack(STUCK)),
    _scheduled("r2", "reserve", 6),
    RunStarted("r3", "greet", 1, b"", START_US),
    RunEnded("r3", "completed", START_US + 8, pack("hello Ann")),
    RunStarted("r4", "greet", 1, b"", START_US),
    StepQueued("r4", _order("a"), b""),
    RunsCapped(100, 20, {"email": 3}),
]

TOOLS: list[DomainEvent] = [
    TenantCreated("Tools Ltd", "pro", START_US),
    ToolsAllowed(("email", "payment")),
    ToolCalled("payment", "t1", "payment", 1, START_US + MINUTE_US, b"s" * 32),
    ToolPayloadKept("payment", "t1", "input", {"card": "4242", "amount": 7}),
    ToolSucceeded("payment", "t1", 1_200, 2, 30_000, b"o" * 32),
    ToolPayloadKept("payment", "t1", "output", {"receipt": "r-1"}),
    ToolCalled("email", "t2", "email", 1, START_US + MINUTE_US, b""),
    ToolFailed("email", "t2", 90, 1, 0, "busy", "try later", True, True, ""),
    ToolCalled("email", "t2", "email", 2, START_US + 2 * MINUTE_US, b""),
    ToolCalled("email", "t3", "email", 1, START_US + 2 * MINUTE_US, b""),
    ToolFailed("email", "t3", 0, 0, 0, "breaker_open", "the breaker is open", True, False, "breaker"),
]

SYSTEM: list[DomainEvent] = [
    SupervisorStarted("root", START_US),
    BreakerChanged("model", "", "closed", "open", "half of the calls failed", START_US, 20, 11, 2, 3, 2, 1),
    BreakerChanged("model", "", "open", "half_open", "waited", START_US + 5, 0, 0, 0, 0, 0, 2, "gateway-1"),
    BreakerForced("model", "acme", "closed", "forced_open", "it is being repaired", START_US + 6, 1),
    BulkheadChanged("model", "", "saturated", 8, 8, 19, 3, "all permits are leased", START_US + 7),
    BulkheadChanged("mail", "acme", "free", 2, 1, 1, 1, "enough again", START_US + 8),
    TenantQuarantined("acme", "crashed its actor", 5, START_US + MINUTE_US, START_US + 9),
    TenantQuarantined("other", "crashed its actor", 5, START_US + MINUTE_US, START_US + 9),
    TenantReleased("other", "it was a bug of ours", START_US + 10),
]

PATCHES: list[DomainEvent] = [
    TenantCreated("Patches Ltd", "pro", START_US),
    RunStarted("r1", "order", 1, b"", START_US),
    RunPatched("r1", 2),
]

SCENARIOS: dict[str, list[DomainEvent]] = {
    "tenant": TENANT,
    "runs": RUNS,
    "tools": TOOLS,
    "system": SYSTEM,
    "patches": PATCHES,
}
