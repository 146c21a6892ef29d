"""``/v1/runs``: a tenant's durable runs, with its own keys."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Response
from fastapi.responses import StreamingResponse

from serve.admin import run_actions as runs
from serve.admin.new_run import NewRun
from serve.admin.routes import IdempotencyKey, Svc, Who
from serve.admin.run_actions import ForkFrom, RunOut
from serve.own.admitted import while_admitted
from serve.own.routes import Reader, Starter
from serve.run_events import events_of
from serve.run_list import RunList, Wanted, list_of

own_runs = APIRouter(prefix="/v1/runs", tags=["runs"])


@own_runs.post("", status_code=202)
async def start_own_run(
    services: Svc, caller: Starter, body: NewRun, response: Response, idempotency_key: IdempotencyKey = None
) -> RunOut:
    """Start a run of a saga or of an agent: 202 once it is on disk. The same Idempotency-Key with the same body is the same run."""
    return await runs.start(services, Who.caller(caller), body, response, idempotency_key)


@own_runs.get("")
async def list_own_runs(services: Svc, caller: Reader, wanted: Wanted) -> RunList:
    """Runs by their start, the newest first. `next` is the `after` of the following page."""
    return await list_of(services, caller.tenant, wanted)


@own_runs.get("/{run_id:path}/events", response_class=StreamingResponse)
async def follow_own_run(
    services: Svc,
    caller: Reader,
    run_id: str,
    last_event_id: Annotated[str | None, Header()] = None,
    authorization: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """What happens in the run, and what its models write (`run.delta`: a piece of text and its offset), as server-sent
    events until it has ended, or the key is no longer good; `Last-Event-ID` goes on after that one.
    """
    events = await events_of(services, caller.tenant, run_id, last_event_id)
    admitted = while_admitted(events, lambda: services.authenticator.authenticate(authorization, "read"))
    return StreamingResponse(admitted, media_type="text/event-stream")


@own_runs.post("/{run_id:path}/signals/{name}", status_code=202)
async def signal_own_run(
    services: Svc,
    caller: Starter,
    run_id: str,
    name: str,
    response: Response,
    payload: Annotated[Any, Body()] = None,
    idempotency_key: IdempotencyKey = None,
) -> RunOut:
    """Give the run what one of its steps waits for, or will wait for: the body, as JSON."""
    return await runs.signal(services, Who.caller(caller), run_id, name, payload, response, idempotency_key)


@own_runs.post("/{run_id:path}/cancel", status_code=202)
async def cancel_own_run(
    services: Svc,
    caller: Starter,
    run_id: str,
    response: Response,
    reason: str = "",
    idempotency_key: IdempotencyKey = None,
) -> RunOut:
    """Stop the run and its child runs; what they have done is undone."""
    return await runs.cancel(services, Who.caller(caller), run_id, reason, response, idempotency_key)


@own_runs.post("/{run_id:path}/retry", status_code=202)
async def retry_own_run(
    services: Svc, caller: Starter, run_id: str, response: Response, idempotency_key: IdempotencyKey = None
) -> RunOut:
    """Have tried again what failed for good: a failed step, or what could not be undone."""
    return await runs.retry(services, Who.caller(caller), run_id, response, idempotency_key)


@own_runs.post("/{run_id:path}/fork", status_code=202)
async def fork_own_run(
    services: Svc,
    caller: Starter,
    run_id: str,
    body: ForkFrom,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> RunOut:
    """Start a new run that keeps the results before a step, and does the rest anew."""
    return await runs.fork(services, Who.caller(caller), run_id, body.step, response, idempotency_key)


@own_runs.get("/{run_id:path}")
async def show_own_run(services: Svc, caller: Reader, run_id: str) -> Response:
    """The run with its steps, under way or ended: status, attempts, times, cost, results, the output or the error."""
    return await runs.show(services, caller.tenant, run_id)
