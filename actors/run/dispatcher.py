"""From the log to the work queue: what a tenant has scheduled is handed to runners, after it is durable and not before.

A crash between the two loses nothing: the tenant's next activation hands out again whatever is under way, and the queue
holds each attempt once.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence

import msgspec

from actors.aggregate import State
from actors.run.machine import idempotency_key
from actors.run.open_runs import is_with_runners
from actors.run.state import Run, Step
from events.catalog import DomainEvent
from events.errors import PlatformError
from events.failpoints import failpoint
from events.run import CompensationStuck, StepRequeued, StepScheduled
from events.sealing import Cipher, seal_bytes
from events.work import Message, WorkItem, WorkQueue, work_subject

log = logging.getLogger(__name__)

SEALED_AS = "work"  # so that no other sealed bytes are taken for an item
_WEIGHTS = {"free": 1.0, "pro": 4.0, "enterprise": 16.0}
_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 5.0
_AT_ONCE = 64

_encode = msgspec.msgpack.Encoder().encode


class Dispatcher:
    """One per process; safe for all its tenants at once."""

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def appended(self, tenant: str, state: State, events: Sequence[DomainEvent], cipher: Cipher) -> None:
        """Of events that are durable now; ``state`` is the one after them."""
        for event in events:
            if isinstance(event, CompensationStuck):
                log.error(
                    "run.compensation_stuck tenant=%s run=%s step=%s: a person has to look; then `tenantry runs retry %s %s`",
                    tenant, event.run_id, event.step, tenant, event.run_id,
                )  # fmt: skip
            if not isinstance(event, StepScheduled | StepRequeued):
                continue
            name = event.order.step if isinstance(event, StepScheduled) else event.step
            run = state.runs.open.get(event.run_id)
            step = run.steps.get(name) if run is not None else None
            if run is not None and step is not None and is_with_runners(step):
                self._start(tenant, state, [_item(tenant, run, step, again=isinstance(event, StepRequeued))], cipher)

    def activated(self, tenant: str, state: State, cipher: Cipher) -> None:
        """Whatever the log says is under way: nobody knows whether the activation before this one got to handing it out."""
        items = [
            _item(tenant, run, step, again=True)
            for run in state.runs.open.values()
            for step in run.steps.values()
            if is_with_runners(step)
        ]
        if items:
            self._start(tenant, state, items, cipher)

    def _start(self, tenant: str, state: State, items: Sequence[WorkItem], cipher: Cipher) -> None:
        weight = _WEIGHTS[state.tenant.plan]
        task = asyncio.create_task(self._put_all(tenant, state, items, weight, cipher))
        self._tasks.add(task)  # asyncio itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _put_all(
        self, tenant: str, state: State, items: Iterable[WorkItem], weight: float, cipher: Cipher
    ) -> None:
        for item in items:
            run = state.runs.open[item.run_id]
            body = seal_bytes(cipher, SEALED_AS, _encode(item))
            async with self._room:
                failpoint("saga.after_intent", tenant)
                await self._put(work_subject(tenant, item), Message(tenant, weight, run.priority, body))
                failpoint("saga.after_dispatch", tenant)

    async def _put(self, subject: str, message: Message) -> None:
        """Until it is in the queue: nobody else would put it there before the step's own alarm."""
        delay_s = _RETRY_FIRST_S
        while True:
            try:
                await self._queue.put(subject, message)
                return
            except PlatformError as error:
                log.warning("work.put_retried subject=%s in_s=%s: %s", subject, delay_s, error)
            await asyncio.sleep(delay_s)  # back-off; only asking again tells that the broker is back
            delay_s = min(delay_s * 2, _RETRY_MAX_S)

    async def close(self) -> None:
        """What is not in the queue yet is handed out by the tenants' next activations."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _item(tenant: str, run: Run, step: Step, *, again: bool) -> WorkItem:
    assert step.order is not None
    return WorkItem(
        tenant=tenant,
        run_id=run.id,
        saga=run.saga,
        version=run.version,
        order=step.order,
        args=step.args,
        attempt=step.attempt,
        idempotency_key=idempotency_key(tenant, run.id, step.order.step, step.forgiven),
        key_id=run.key_id,
        tags=dict(run.tags),
        again=again,
    )
