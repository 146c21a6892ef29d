"""Steps of runs that call tools."""

from typing import Any

from actors.run.agent import AGENT
from actors.run.functions import StepFailure
from actors.run.runner import Done
from actors.tools.errors import ToolOutcomeUnknownError
from actors.tools.runner import Tools
from events.run import Used
from events.work import WorkItem
from serve.agent_turns import AgentTurns


class ToolSteps:
    """Steps of kind ``tool``: with the tool's policies, and with intent and result in the tenant's log."""

    def __init__(self, tools: Tools, turns: AgentTurns) -> None:
        self._tools, self._turns = tools, turns

    async def __call__(self, item: WorkItem, args: Any) -> Done:
        """
        Raises:
            StepFailure: The arguments are no object; an agent wants what only a person may allow.
            ToolOutcomeUnknownError: It was called for an earlier attempt whose answer is lost, and can't be asked again.
            Whatever the call raises.
        """
        tool = item.order.target
        if not isinstance(args, dict):
            raise StepFailure("invalid_request", f"tool {tool!r} takes an object, got {type(args).__name__}")
        # here as well as in the agent's plan: whoever wrote its specification, and whatever that says
        is_guarded = item.saga == AGENT and self._tools.registry.config(tool, item.tenant).destructive
        if is_guarded and not await self._turns.is_allowed(item):
            message = f"tool {tool!r} is marked destructive: each call needs a person's approval (`approve`)"
            raise StepFailure("approval_required", message)
        done = await self._tools.call(
            item.tenant,
            tool,
            args,
            idempotency_key=item.idempotency_key,
            actor=f"run:{item.run_id}",
            timeout_s=item.order.timeout_us / 1e6,
            correlation_id=item.run_id,
        )
        if done.repeated and done.output is None:
            message = f"{tool!r} has done it, but its answer was lost with the runner, and it can't be asked again"
            raise ToolOutcomeUnknownError(tool, message)
        return Done(done.output, Used(cost_nano_usd=done.cost_nano_usd))
