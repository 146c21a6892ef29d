"""What a client is told to do about an error: the official client obeys `x-should-retry` and `Retry-After`."""

import pickle

import pytest

from actors.policies.refusals import BreakerOpenError, BulkheadFullError
from actors.tools.errors import (
    RequestRefusedError,
    ToolError,
    ToolOutcomeUnknownError,
    ToolRefusedError,
    ToolUnavailableError,
)
from events.errors import (
    AlreadyExistsError,
    CommandIdReusedError,
    CommandRefusedError,
    KeyRefusedError,
    NotServedError,
    OutcomeUnknownError,
    OverloadedError,
    PlatformError,
    StoreUnavailableError,
    UnservableError,
)
from serve.http_errors import HttpError, as_http_error, error_headers
from serve.kept import NoRoomError


def tool(kind: type[ToolError], code: str | None = None, retry_after_s: float | None = None) -> ToolError:
    return kind("m", "it failed", code, retry_after_s)


@pytest.mark.parametrize(
    ("error", "status", "should_retry"),
    [
        (CommandRefusedError("rate_limit_exceeded", "too many", 3.0), 429, True),
        (OverloadedError("acme", 9), 429, True),
        (NoRoomError(1), 429, True),
        (CommandRefusedError("budget_exceeded", "spent", None), 402, False),
        (KeyRefusedError(), 401, False),
        (AlreadyExistsError("tenant", "acme"), 409, False),
        (CommandIdReusedError("k"), 422, False),
        (StoreUnavailableError("away"), 503, True),
        (NotServedError("acme", "moving"), 503, True),
        (NotServedError("acme", "in quarantine", 42.0), 503, True),
        (UnservableError("acme", "halted"), 503, False),
        (OutcomeUnknownError("acme", "c1"), 504, False),
        (BreakerOpenError("m", "open", 2.0), 503, True),
        (BulkheadFullError("m", "full", 1.0), 503, True),
        (tool(ToolUnavailableError, "upstream_overloaded", 17.0), 503, True),
        (tool(ToolRefusedError, "invalid_request"), 400, False),
        (tool(ToolOutcomeUnknownError, "upstream_unavailable", 2.0), 503, False),
        (tool(ToolOutcomeUnknownError, "upstream_timeout"), 504, False),
    ],
)
def test_a_repeat_is_invited_where_nothing_was_done_and_later_it_may_be(
    error: PlatformError, status: int, should_retry: bool
) -> None:
    told = as_http_error(error)
    headers = error_headers(told)
    assert (told.status, headers["x-should-retry"]) == (status, "true" if should_retry else "false")
    if status in (429, 503) and should_retry:
        assert 1 <= int(headers["retry-after"]) <= 60


def test_a_model_servers_no_keeps_its_status_and_words_in_any_process() -> None:
    refusal = RequestRefusedError("m", "too long", 413, "context_length_exceeded", "messages")
    told = as_http_error(pickle.loads(pickle.dumps(refusal)))
    assert (told.status, told.code, told.param) == (413, "context_length_exceeded", "messages")
    assert error_headers(told)["x-should-retry"] == "false"
    plain = as_http_error(RequestRefusedError("m", "no"))
    assert (plain.status, plain.code, plain.param) == (400, "invalid_request", None)


def test_waits_are_whole_seconds_and_at_least_one() -> None:
    headers = error_headers(HttpError(429, "rate_limited", "slowly", retry_after_s=0.2))
    assert (headers["retry-after"], headers["x-should-retry"]) == ("1", "true")
    assert error_headers(HttpError(500, "internal_error", "a defect"))["x-should-retry"] == "false"
