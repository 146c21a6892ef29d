"""What the processes of the saga sweep are: a shard that hands out work, and a runner with real tools. The saga that both know."""

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from actors.run import Parallel, Retry, Saga, Step, Undo, View, register
from actors.run import runner as runners
from actors.run.runner import Handler, Runner
from actors.run.state import Run
from actors.tools.config import EmailConfig, HttpConfig, PaymentConfig, ToolConfig, ToolConfigBuilder
from actors.tools.registry import Registry
from actors.tools.runner import Tools
from events import work
from events.ask import Asker
from events.bus import Bus
from events.keys import Keys
from events.objects import Objects
from events.tasks import end_tasks
from events.work import WorkQueue
from serve.agent_turns import AgentTurns
from serve.steps import ToolSteps
from tests.kit.builders import PaymentRequestBuilder
from tests.kit.payments import API_KEY

SENDER = "orders@example.com"
ACK_WAIT_S = 1.0  # what a killed runner had in hand comes again after that
TIMEOUT_S = 1.0
_KEY_VARIABLE = "SWEEP_PAYMENTS_KEY"


class Endpoints(msgspec.Struct, frozen=True):
    """Where the dependencies are."""

    payments_url: str
    mail_port: int
    hook_url: str


class Order(msgspec.Struct, frozen=True):
    can_ship: bool


_RETRY = Retry(attempts=5, first_s=0.1, max_s=1.0)
_UNDO_RETRY = Retry(attempts=10, first_s=0.1, max_s=1.0)


def _post(path: str) -> Mapping[str, Any]:
    return {"method": "POST", "path": path, "json": {}}


def _charge(run: View) -> dict[str, Any]:
    return PaymentRequestBuilder().for_order(run.id).build()


def _refund(run: View) -> dict[str, Any]:
    return {"action": "refund", "payment_id": run["charge"]["id"]}


register(
    Saga(
        "sweep-order",
        input=Order,
        steps=(
            Parallel(
                Step(
                    "reserve",
                    tool="hook",
                    args=lambda _: _post("/reserve"),
                    timeout_s=TIMEOUT_S,
                    retry=_RETRY,
                    undo=Undo(
                        tool="hook",
                        args=lambda _: _post("/release"),
                        timeout_s=TIMEOUT_S,
                        retry=_UNDO_RETRY,
                        if_unknown=True,
                    ),
                ),
                Step(
                    "charge",
                    tool="payments",
                    args=_charge,
                    timeout_s=TIMEOUT_S,
                    retry=_RETRY,
                    undo=Undo(tool="payments", args=_refund, timeout_s=TIMEOUT_S, retry=_UNDO_RETRY),
                ),
            ),
            Step(
                "email",
                tool="mail",
                args=lambda _: {"to": ["ann@example.com"], "subject": "Your order", "text": "It is on its way."},
                timeout_s=TIMEOUT_S,
                retry=_RETRY,
            ),
            Step(
                "ship",
                tool="hook",
                args=lambda run: _post("/ship" if run.input.can_ship else "/refuse"),
                timeout_s=TIMEOUT_S,
                retry=_RETRY,
            ),
        ),
        output=lambda run: run.get("ship"),
    )
)


def tools_of(endpoints: Endpoints) -> list[ToolConfig]:
    os.environ[_KEY_VARIABLE] = API_KEY
    payments = {"base_url": endpoints.payments_url, "api_key_env": _KEY_VARIABLE}
    mail = {"host": "127.0.0.1", "port": endpoints.mail_port, "security": "none", "sender": SENDER}
    return [
        ToolConfigBuilder(PaymentConfig, "payments").set(**payments).build(),
        ToolConfigBuilder(EmailConfig, "mail").set(**mail).build(),
        ToolConfigBuilder(HttpConfig, "hook").set(base_url=endpoints.hook_url).build(),
    ]


def come_again_soon() -> None:
    work.ACK_WAIT_S = ACK_WAIT_S
    runners.ACK_WAIT_S = ACK_WAIT_S  # type: ignore[attr-defined]


async def _no_agent(_tenant: str, run_id: str) -> Run:
    raise AssertionError(f"{run_id} is no agent's run")


async def work_for_ever(bus: Bus, keys: Keys, endpoints: Endpoints, ready: asyncio.Event) -> None:
    come_again_soon()
    queue, asker = WorkQueue(bus), Asker(bus)
    await queue.prepare()
    registry, objects = Registry(tools_of(endpoints)), Objects("", keys)
    tools = Tools(asker, registry)
    handlers: dict[str, Handler] = {"tool": ToolSteps(tools, AgentTurns(_no_agent, objects, registry))}
    running = asyncio.create_task(Runner(queue, asker, keys, objects, handlers).run())
    ready.set()
    try:
        await asyncio.shield(running)
    finally:
        await end_tasks(running)
        await tools.close()
