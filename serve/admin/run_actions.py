"""Durable runs over HTTP, for a tenant's own keys and for operators: start, watch, steer.

What is shown of a run is folded from its stream of the tenant's log, so an ended run is shown like one under way, and all
that was acknowledged is in it. An id that is another tenant's is one that does not exist.
"""

import json
from typing import Annotated, Any

import msgspec
from fastapi import Response
from pydantic import BaseModel, Field

from actors.run.again import kept_until
from actors.run.agent import AGENT
from actors.run.state import describe, fold_stream
from events.envelope import Ok
from events.errors import (
    CommandIdReusedError,
    CommandRefusedError,
    InvalidCommandError,
    NotFoundError,
    RunClosedError,
    TooLargeError,
)
from events.objects import INLINE_BYTES_MAX
from events.run import CancelRun, RetryRun, RunEvents, RunStarted, SignalRun, StartRun, pack
from serve.admin.new_run import NewRun, agent_spec
from serve.admin.routes import Who, ask, stamp, stamp_position
from serve.services import Services

_KEPT_BYTES_MAX = 768 * 1024


class ForkFrom(BaseModel, extra="forbid"):
    step: Annotated[str, Field(min_length=1, max_length=200, description="Done again, with all that comes after it")]


class RunOut(BaseModel):
    """``position``: of its latest event in the tenant's log when this was answered."""

    id: str
    status: str
    position: int


async def start(
    services: Services, who: Who, body: NewRun, response: Response, idempotency_key: str | None = None
) -> RunOut:
    """The same Idempotency-Key with the same body is the same run, for as long as its history is kept.

    Raises:
        TooLargeError: The input is over ``INLINE_BYTES_MAX`` bytes.
        CommandIdReusedError: The Idempotency-Key is another run's.
        CommandRefusedError: No such saga, an input that it can't take, too many open runs.
    """
    saga, given, lasts_s = body.saga, body.input, body.deadline_s or 0.0
    if body.agent is not None:
        spec = agent_spec(services, body.agent, given)
        saga, given = AGENT, spec
        lasts_s = min(filter(None, (lasts_s, spec.limits.seconds)), default=0.0)
    payload = _packed("a run's input", given)
    run_id = who.command_id(services, idempotency_key)
    command = StartRun(
        run_id,
        saga,
        payload,
        version=body.version,
        priority=body.priority,
        key_id=who.by_key,
        tags=body.tags,
        lasts_us=round(lasts_s * 1e6),
    )
    if idempotency_key and (known := await services.runs.entries(who.tenant, run_id)):
        if not _is_start_of(command, known[0].event):  # answers are kept for two days, runs for longer
            raise CommandIdReusedError(run_id)
        position = known[-1].stored.position
        stamp_position(response, position)
        return RunOut(id=run_id, status=fold_stream([entry.event for entry in known]).status, position=position)
    return await _changed(services, who, run_id, await ask(services, who, command, run_id), response)


def _is_start_of(command: StartRun, event: RunEvents) -> bool:
    if not isinstance(event, RunStarted):
        return False
    lasts_us = event.deadline_us and event.deadline_us - event.started_us
    return (
        (event.saga, event.input, event.priority, dict(event.tags), lasts_us)
        == (command.saga, command.input, command.priority, dict(command.tags), command.lasts_us)
    ) and command.version in (0, event.version)


async def show(services: Services, tenant: str, run_id: str) -> Response:
    """``actors.run.state.describe`` of the run. A value over 64 KiB is shown as the reference to its object."""
    return Response(
        msgspec.json.encode(describe(await services.runs.run(tenant, run_id))), media_type="application/json"
    )


async def signal(
    services: Services, who: Who, run_id: str, name: str, payload: Any, response: Response, key: str | None
) -> RunOut:
    """It is kept until a step waits for it.

    Raises:
        NotFoundError, RunClosedError, TooLargeError
    """
    packed = _packed("a signal's payload", payload)
    return await _steer(services, who, SignalRun(run_id, name, packed), response, key)


def _packed(what: str, given: Any) -> bytes:
    """Raises TooLargeError, and InvalidCommandError where it is no JSON that every reader of it would take for the same."""
    try:
        json.dumps(msgspec.to_builtins(given), allow_nan=False, ensure_ascii=False).encode()
        packed = pack(given)
    except (ValueError, OverflowError, RecursionError) as error:
        message = f"{what} is not JSON that can be kept (NaN, numbers beyond 64 bits, half a surrogate pair?): {error}"
        raise InvalidCommandError(message[:300].encode(errors="replace").decode()) from error
    if len(packed) > INLINE_BYTES_MAX:
        raise TooLargeError(f"{what} in bytes", len(packed), INLINE_BYTES_MAX)
    return packed


async def cancel(services: Services, who: Who, run_id: str, reason: str, response: Response, key: str | None) -> RunOut:
    """What is done is undone; then it ends as cancelled. Raises NotFoundError, RunClosedError."""
    return await _steer(services, who, CancelRun(run_id, reason), response, key)


async def retry(services: Services, who: Who, run_id: str, response: Response, key: str | None) -> RunOut:
    """Have what failed for good tried again. Raises NotFoundError, and RunClosedError where nothing did."""
    return await _steer(services, who, RetryRun(run_id), response, key)


async def fork(services: Services, who: Who, run_id: str, step: str, response: Response, key: str | None) -> RunOut:
    """A new run that takes over what had finished before the step, and does that step and all after it anew.

    Of a run that is under way only what it would not undo is taken over: each effect has one owner.

    Raises:
        NotFoundError: No such run, or it never came to that step.
        RunClosedError: What would be taken over has been undone; the run is another's step.
        CommandRefusedError: What would be taken over a run under way may still undo.
    """
    run = await services.runs.run(who.tenant, run_id)
    if run.parent:
        raise RunClosedError(run_id, f"it is a step of run {run.parent!r}: fork that one")
    new_id = who.command_id(services, key)
    kept = kept_until(run, step)
    size = sum(len(each.args) + len(each.result) for each in kept)
    if size > _KEPT_BYTES_MAX:  # it goes to the tenant's actor in one message
        raise TooLargeError("what a fork keeps in bytes", size, _KEPT_BYTES_MAX)
    command = StartRun(
        new_id,
        run.saga,
        run.input,
        version=run.version,
        priority=run.priority,
        key_id=who.by_key,
        tags=run.tags,
        forked_from=run_id,
        kept=kept,
    )
    return await _changed(services, who, new_id, await ask(services, who, command, new_id), response)


async def _steer(
    services: Services, who: Who, command: SignalRun | CancelRun | RetryRun, response: Response, key: str | None
) -> RunOut:
    if not await services.runs.page(who.tenant, command.run_id, 0, 1):
        raise NotFoundError("run", command.run_id[:80])
    try:
        ok = await ask(services, who, command, who.command_id(services, key))
    except CommandRefusedError as refusal:
        if refusal.code == NotFoundError.code:  # the tenant's actor remembers open runs only
            raise RunClosedError(command.run_id, "it has ended") from refusal
        raise
    return await _changed(services, who, command.run_id, ok, response)


async def _changed(services: Services, who: Who, run_id: str, ok: Ok, response: Response) -> RunOut:
    stamp(response, ok)
    status = ok.result.get("status") or (await services.runs.run(who.tenant, run_id)).status  # it may have ended by it
    return RunOut(id=run_id, status=status, position=ok.position)
