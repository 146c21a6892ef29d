"""Durable runs of any tenant."""

from typing import Annotated, Any

from fastapi import Body, Header, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from actors.run.machine import CAP_MAX, CAPPED_TARGETS_MAX
from events.run import CapRuns, DescribeRunCaps
from serve.admin import run_actions as runs
from serve.admin.new_run import NewRun
from serve.admin.routes import (
    IdempotencyKey,
    Svc,
    Who,
    ask,
    command_id_for,
    commands,
    head_of,
    router,
    stamp,
)
from serve.admin.run_actions import ForkFrom, RunOut
from serve.run_events import events_of
from serve.run_list import RunList, Wanted, list_of


@router.post("/tenants/{tenant}/runs", status_code=202)
async def start_run(
    services: Svc, tenant: str, body: NewRun, response: Response, idempotency_key: IdempotencyKey = None
) -> RunOut:
    """Start a run for the tenant: 202 once it is on disk."""
    return await runs.start(services, Who(tenant), body, response, idempotency_key)


@router.post("/tenants/{tenant}/runs/{run_id:path}/signals/{name}", status_code=202)
async def signal_run(
    services: Svc,
    tenant: str,
    run_id: str,
    name: str,
    response: Response,
    payload: Annotated[Any, Body()] = None,
    idempotency_key: IdempotencyKey = None,
) -> RunOut:
    """Give the run what one of its steps waits for, or will wait for: the body, as JSON."""
    return await runs.signal(services, Who(tenant), run_id, name, payload, response, idempotency_key)


@router.post("/tenants/{tenant}/runs/{run_id:path}/cancel", status_code=202)
async def cancel_run(
    services: Svc,
    tenant: str,
    run_id: str,
    response: Response,
    reason: str = "",
    idempotency_key: IdempotencyKey = None,
) -> RunOut:
    """Stop the run and its child runs; what they have done is undone."""
    return await runs.cancel(services, Who(tenant), run_id, reason, response, idempotency_key)


@router.post("/tenants/{tenant}/runs/{run_id:path}/retry", status_code=202)
async def retry_run(
    services: Svc, tenant: str, run_id: str, response: Response, idempotency_key: IdempotencyKey = None
) -> RunOut:
    """Have tried again what failed for good: a failed step, or what could not be undone."""
    return await runs.retry(services, Who(tenant), run_id, response, idempotency_key)


@router.post("/tenants/{tenant}/runs/{run_id:path}/fork", status_code=202)
async def fork_run(
    services: Svc,
    tenant: str,
    run_id: str,
    body: ForkFrom,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> RunOut:
    """Start a new run that keeps the results before a step, and does the rest anew."""
    return await runs.fork(services, Who(tenant), run_id, body.step, response, idempotency_key)


@router.get("/tenants/{tenant}/runs")
async def list_runs(services: Svc, tenant: str, wanted: Wanted) -> RunList:
    """Runs by their start, the newest first. `next` is the `after` of the following page."""
    await head_of(services, tenant)
    return await list_of(services, tenant, wanted)


class CapsIn(BaseModel, extra="forbid"):
    """How many of the tenant's steps may be with runners at once; 0 is the platform's own cap. What is more waits."""

    steps_max: Annotated[int, Field(ge=0, le=CAP_MAX, description="In all")] = 0
    target_max: Annotated[int, Field(ge=0, le=CAP_MAX, description="Of any one tool, function or model")] = 0
    targets: Annotated[
        dict[str, Annotated[int, Field(ge=1, le=CAP_MAX)]],
        Field(max_length=CAPPED_TARGETS_MAX, description="Of tools, functions and models by name"),
    ] = Field(default_factory=dict)


class CapsOut(BaseModel):
    """`under_way`: steps with runners now, by what they call; `queued`: those that wait for room."""

    steps_max: int
    target_max: int
    targets: dict[str, int]
    under_way: dict[str, int]
    queued: int
    position: int


@router.get("/tenants/{tenant}/run-caps")
async def show_caps(services: Svc, tenant: str) -> CapsOut:
    """The tenant's caps, and how much of them is used."""
    ok = await ask(services, tenant, DescribeRunCaps())
    return CapsOut(**ok.result, position=ok.position)


@commands.put("/tenants/{tenant}/run-caps")
async def set_caps(
    services: Svc, tenant: str, body: CapsIn, response: Response, idempotency_key: IdempotencyKey = None
) -> CapsOut:
    """Set all caps of the tenant's steps. Those under way beyond them are let finish."""
    command = CapRuns(body.steps_max, body.target_max, body.targets)
    ok = await ask(services, tenant, command, command_id_for(services, tenant, idempotency_key))
    stamp(response, ok)
    return CapsOut(**ok.result, position=ok.position)


@router.get("/tenants/{tenant}/runs/{run_id:path}/events", response_class=StreamingResponse)
async def follow_run(
    services: Svc, tenant: str, run_id: str, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """What happens in the run, and what its models write, as server-sent events until it has ended."""
    events = await events_of(services, tenant, run_id, last_event_id)
    return StreamingResponse(events, media_type="text/event-stream")


@router.get("/tenants/{tenant}/runs/{run_id:path}")
async def show_run(services: Svc, tenant: str, run_id: str) -> Response:
    """The run with its steps, under way or ended."""
    return await runs.show(services, tenant, run_id)
