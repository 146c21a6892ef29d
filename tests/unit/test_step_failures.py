"""How a runner tells its tenant that a step has failed."""

import pytest

from actors.policies.refusals import BulkheadFullError
from actors.run.functions import StepFailure
from actors.run.runner import _failure
from actors.tools.errors import ToolUnavailableError
from events.errors import NotFoundError
from events.run import RetryRule, StepOrder, Used, pack
from events.work import WorkItem

ITEM = WorkItem("acme", "run", "order", 1, StepOrder("pay", "tool", "pay", 10, RetryRule(3)), pack({}), 1, "key")


@pytest.mark.parametrize(
    "error",
    [
        BulkheadFullError("pay", "busy", 1.0),
        StepFailure("no", "no"),
        ToolUnavailableError("pay", "away"),
        NotFoundError("x", "y"),
    ],
)
def test_a_refusal_is_surely_not_done_unless_an_attempt_before_it_may_have_been(error: Exception) -> None:
    assert not _failure(ITEM, error, 1, Used()).may_have_happened
    error.may_have_happened = True  # type: ignore[attr-defined]  # as ``Retry`` does
    assert _failure(ITEM, error, 1, Used()).may_have_happened
