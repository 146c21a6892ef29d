"""Errors as the OpenAI client expects them: ``{"error": {"message", "type", "param", "code"}}``."""

import logging
import math
import secrets
from typing import TYPE_CHECKING

import msgspec

from actors.tools.errors import RequestRefusedError, ToolError, ToolRefusedError
from events.errors import BusUnavailableError, PlatformError, StoreUnavailableError, TransientError, UnservableError

if TYPE_CHECKING:
    from fastapi.exceptions import RequestValidationError  # runners know these errors, and serve nothing

log = logging.getLogger(__name__)

_STATUS = {
    "invalid_request": 400,
    "invalid_api_key": 401,
    "budget_exceeded": 402,
    "forbidden": 403,
    "tenant_suspended": 403,
    "model_not_allowed": 403,
    "tool_not_allowed": 403,
    "not_found": 404,
    "model_not_found": 404,
    "already_exists": 409,
    "in_progress": 409,
    "tenant_erased": 410,
    "log_rewound": 409,
    "run_closed": 409,
    "not_placed": 409,
    "tenant_unavailable": 503,
    "too_large": 413,
    "idempotency_mismatch": 422,
    "rate_limited": 429,
    "too_many_runs": 429,
    "rate_limit_exceeded": 429,
    "tokens_limit_exceeded": 429,
    "concurrency_limit_exceeded": 429,
    "not_projected": 503,
    "outcome_unknown": 504,
    "tool_outcome_unknown": 504,
    "dependency_timeout": 504,
    "upstream_timeout": 504,
}
_TYPES = {401: "authentication_error", 402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_error"}
_RETRY_AFTER_DEFAULT_S = 1.0


class HttpError(Exception):
    """A refusal that the HTTP side itself decides."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s, self.should_retry, self.allow = retry_after_s, should_retry, allow

    def __str__(self) -> str:
        return self.message


def as_http_error(error: PlatformError) -> HttpError:
    """Refusals are the caller's (4xx), what is transient is ours (503 with Retry-After), an unknown outcome is 504."""
    if isinstance(error, ToolError):
        return _tool_http_error(error)
    default = 503 if isinstance(error, TransientError) else 500
    status = _STATUS.get(error.code, default)
    retry_after_s = getattr(error, "retry_after_s", None)
    is_final = isinstance(error, UnservableError)
    if retry_after_s is None and status in (429, 503) and not is_final:
        retry_after_s = _RETRY_AFTER_DEFAULT_S
    message = str(error)
    if isinstance(error, StoreUnavailableError | BusUnavailableError):  # the text names hosts and ports
        log.warning("http.unavailable code=%s: %s", error.code, error)
        message = "a part of the platform can't be reached at the moment: try again"
    # a repeat of an unknown outcome needs the same Idempotency-Key, which a client's automatic retry doesn't send
    return HttpError(
        status,
        error.code,
        message,
        retry_after_s=retry_after_s,
        should_retry=False if status in (402, 504) or is_final else None,
    )


def _tool_http_error(error: ToolError) -> HttpError:
    """A dependency's no is the caller's to mend. A client's automatic retry has no idempotency key, so it is invited only
    where surely nothing happened.
    """
    if isinstance(error, RequestRefusedError):
        code, param = error.said_code or error.code, error.param or None
        return HttpError(error.status, code, error.message, param=param, should_retry=False)
    if isinstance(error, ToolRefusedError):
        return HttpError(_STATUS.get(error.code, 422), error.code, error.message, should_retry=False)
    should_retry = error.retryable and not error.may_have_happened
    status = _STATUS.get(error.code, 503)
    return HttpError(status, error.code, error.message, retry_after_s=error.retry_after_s, should_retry=should_retry)


def not_allowed(method: str, path: str, allow: tuple[str, ...]) -> HttpError:
    message = f"{method} {path}: not a method of this path; there are {', '.join(allow)}"
    return HttpError(405, "method_not_allowed", message, allow=allow)


def invalid(error: "RequestValidationError") -> HttpError:
    """What is wrong with the first field that is, and which it is."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return HttpError(400, "invalid_request", f"{where}: {first['msg']}", param=where or None)


def unexpected_error(error: Exception) -> HttpError:
    """For an exception nobody expected: what it says stays in the log, under a number that the client is told."""
    number = secrets.token_hex(6)
    log.error("http.unexpected_error number=%s", number, exc_info=error)
    message = f"something went wrong on our side; your operator finds it in the log under {number}"
    return HttpError(500, "internal_error", message, should_retry=False)


def error_body(error: HttpError) -> bytes:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return msgspec.json.encode(
        {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    )


def error_headers(error: HttpError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    # nothing was done, and later it may be; of all else the same request gets the same answer, or may be paid twice
    should_retry = error.status in (429, 503) if error.should_retry is None else error.should_retry
    headers["x-should-retry"] = "true" if should_retry else "false"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.allow:
        headers["allow"] = ", ".join(error.allow)
    return headers
