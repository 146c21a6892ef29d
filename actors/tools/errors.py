"""How a tool's call ends badly, by what the caller can do next.

``may_have_happened`` is the question that matters for money and mail: the effect may have taken place although no answer
says so. Such a call is repeated under the same idempotency key, or not at all.
"""

from events.errors import PlatformError


class ToolError(PlatformError):
    """``cost_nano_usd`` is what the failed call has cost all the same; ``message`` never holds a secret or a host."""

    code = "tool_failed"
    may_have_happened = False

    def __init__(
        self,
        tool: str,
        message: str,
        code: str | None = None,
        retry_after_s: float | None = None,
        cost_nano_usd: int = 0,
    ) -> None:
        super().__init__(tool, message, code, retry_after_s, cost_nano_usd)
        self.tool, self.message, self.retry_after_s, self.cost_nano_usd = tool, message, retry_after_s, cost_nano_usd
        self.code = code or type(self).code

    def __str__(self) -> str:
        return self.message


class ToolRefusedError(ToolError):
    """The tool, or what is behind it, says no to this input: the same call would be refused again. Nothing happened."""

    code = "tool_refused"


class ToolInputError(ToolRefusedError):
    """The input is not what the tool takes; nothing was sent."""

    code = "invalid_request"


class RequestRefusedError(ToolRefusedError):
    """A model server's no to a request. ``status``: the HTTP status that it answered; ``said_code`` and ``param``: its own
    words for what is wrong and where, "" for none. Clients react to them (``context_length_exceeded``, say).
    """

    code = "invalid_request"

    def __init__(self, tool: str, message: str, status: int = 400, said_code: str = "", param: str = "") -> None:
        super().__init__(tool, message)
        self.args = (tool, message, status, said_code, param)  # what pickle makes it of again
        self.status, self.said_code, self.param = status, said_code, param


class ToolUnavailableError(ToolError):
    """The dependency can't do it now. Nothing happened; trying later may help."""

    code = "tool_unavailable"
    retryable = True


class ToolOutcomeUnknownError(ToolError):
    """The request was under way when its answer got lost. It may be repeated under the same idempotency key only."""

    code = "tool_outcome_unknown"
    retryable = True
    may_have_happened = True


class ToolBrokenError(ToolError):
    """It answered, or its adapter did, with what nobody can use. The effect may well have taken place."""

    code = "tool_bad_answer"
    may_have_happened = True
