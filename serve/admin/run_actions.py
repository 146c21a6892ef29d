"""Durable runs over HTTP, for a tenant's own keys and for operators: start, watch, steer.

What is shown of a run is folded from its stream of the tenant's log, so an ended run is shown like one under way, and all
that was acknowledged is in it. An id that is another tenant's is one that does not exist.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import Response
from pydantic import BaseModel, Field

from actors.run.machine import fold_stream, kept_until
from actors.run.state import Run, describe
from events.bus import live_subject, unsubscribe
from events.codec import StoredEvent, decode_event, decode_record, event_type
from events.envelope import Ok
from events.errors import CommandIdReusedError, CommandRefusedError, NotFoundError, RunClosedError, TooLargeError
from events.objects import INLINE_BYTES_MAX
from events.run import (
    CancelRun,
    RetryRun,
    RunEnded,
    RunEvent,
    RunEvents,
    RunStarted,
    SignalRun,
    StartRun,
    pack,
    run_stream,
    unpack,
)
from events.sealing import Cipher
from events.slices import TENANT_ID
from serve.admin.routes import Who, ask, stamp, stamp_position
from serve.http_errors import HttpError
from serve.services import Services

_PAGE = 500
_FOLLOW_RECHECK_S = 1.0  # a live hint can get lost, the log can't
_DEADLINE_S_MAX = 10 * 366 * 86_400.0
_NOT_SHOWN = {"type", "run_id", "run"}

Tag = Annotated[str, Field(max_length=128)]


class NewRun(BaseModel, extra="forbid"):
    """``version`` 0 is the newest; of two runs of a tenant that wait for a runner, the one of higher ``priority`` goes first."""

    saga: Annotated[str, Field(min_length=1, max_length=100, examples=["order"])]
    input: Any = None
    version: Annotated[int, Field(ge=0, le=2**31)] = 0
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    deadline_s: Annotated[
        float | None, Field(gt=0, le=_DEADLINE_S_MAX, description="After that it is undone, and ends as timed_out")
    ] = None
    tags: Annotated[dict[Tag, Tag], Field(max_length=16)] = Field(default_factory=dict)


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
    payload = pack(body.input)
    if len(payload) > INLINE_BYTES_MAX:
        raise TooLargeError("a run's input in bytes", len(payload), INLINE_BYTES_MAX)
    run_id = who.command_id(services, idempotency_key)
    lasts_us = round((body.deadline_s or 0) * 1e6)
    command = StartRun(
        run_id,
        body.saga,
        payload,
        version=body.version,
        priority=body.priority,
        key_id=who.by_key,
        tags=body.tags,
        lasts_us=lasts_us,
    )
    if idempotency_key and (known := await _history(services, who.tenant, run_id)):
        if not _is_start_of(command, known[0][1]):  # answers are kept for two days, runs for longer
            raise CommandIdReusedError(run_id)
        position = known[-1][0].position
        stamp_position(response, position)
        return RunOut(id=run_id, status=fold_stream([event for _, event in known]).status, position=position)
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
        msgspec.json.encode(describe(await read_run(services, tenant, run_id))), media_type="application/json"
    )


async def signal(
    services: Services, who: Who, run_id: str, name: str, payload: Any, response: Response, key: str | None
) -> RunOut:
    """It is kept until a step waits for it.

    Raises:
        NotFoundError, RunClosedError, TooLargeError
    """
    packed = pack(payload)
    if len(packed) > INLINE_BYTES_MAX:
        raise TooLargeError("a signal's payload in bytes", len(packed), INLINE_BYTES_MAX)
    return await _steer(services, who, SignalRun(run_id, name, packed), response, key)


async def cancel(services: Services, who: Who, run_id: str, reason: str, response: Response, key: str | None) -> RunOut:
    """What is done is undone; then it ends as cancelled. Raises NotFoundError, RunClosedError."""
    return await _steer(services, who, CancelRun(run_id, reason), response, key)


async def retry(services: Services, who: Who, run_id: str, response: Response, key: str | None) -> RunOut:
    """Have what failed for good tried again. Raises NotFoundError, and RunClosedError where nothing did."""
    return await _steer(services, who, RetryRun(run_id), response, key)


async def fork(services: Services, who: Who, run_id: str, step: str, response: Response, key: str | None) -> RunOut:
    """A new run that takes over what had finished before the step, and does that step and all after it anew.

    Raises:
        NotFoundError: No such run, or it never came to that step.
    """
    run = await read_run(services, who.tenant, run_id)
    if run.parent:
        raise RunClosedError(run_id, f"it is a step of run {run.parent!r}: fork that one")
    new_id = who.command_id(services, key)
    command = StartRun(
        new_id,
        run.saga,
        run.input,
        version=run.version,
        priority=run.priority,
        key_id=who.by_key,
        tags=run.tags,
        forked_from=run_id,
        kept=kept_until(run, step),
    )
    return await _changed(services, who, new_id, await ask(services, who, command, new_id), response)


async def _steer(
    services: Services, who: Who, command: SignalRun | CancelRun | RetryRun, response: Response, key: str | None
) -> RunOut:
    if not await _page(services, who.tenant, command.run_id, 0, 1):
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
    status = ok.result.get("status") or (await read_run(services, who.tenant, run_id)).status  # it may have ended by it
    return RunOut(id=run_id, status=status, position=ok.position)


async def read_run(services: Services, tenant: str, run_id: str) -> Run:
    """Raises NotFoundError."""
    history = await _history(services, tenant, run_id)
    if not history:
        raise NotFoundError("run", run_id[:80])
    return fold_stream([event for _, event in history])


async def _history(services: Services, tenant: str, run_id: str) -> list[tuple[StoredEvent, RunEvents]]:
    history: list[tuple[StoredEvent, RunEvents]] = []
    while page := await _page(services, tenant, run_id, len(history), _PAGE):
        cipher = await services.keys.cipher(tenant)
        history += [(stored, _run_event(stored, cipher)) for stored in page]
    return history


async def _page(services: Services, tenant: str, run_id: str, after: int, limit: int) -> list[StoredEvent]:
    if not TENANT_ID.fullmatch(tenant):
        raise NotFoundError("tenant", tenant[:80])
    return await services.store.read_stream(tenant, run_stream(run_id), after, limit)


def _run_event(stored: StoredEvent, cipher: Cipher) -> RunEvents:
    event = decode_event(decode_record(stored.record).data, cipher)
    assert isinstance(event, RunEvent)
    return event


async def events_of(services: Services, tenant: str, run_id: str, last_event_id: str | None) -> AsyncIterator[bytes]:
    """Server-sent events of a run, those after ``last_event_id`` (a version of the run's stream), until it has ended.

    Raises:
        HttpError: The id is no version.
        NotFoundError: No such run.
    """
    if last_event_id and not (last_event_id.isdecimal() and len(last_event_id) <= 12):
        message = f"Last-Event-ID is the number of an event of this run, got {last_event_id[:40]!r}"
        raise HttpError(400, "invalid_request", message, param="last-event-id")
    if not await _page(services, tenant, run_id, 0, 1):
        raise NotFoundError("run", run_id[:80])
    return _follow(services, tenant, run_id, int(last_event_id or 0))


async def _follow(services: Services, tenant: str, run_id: str, after: int) -> AsyncIterator[bytes]:
    news = asyncio.Event()
    # the usage projection announces every position it reaches, so its hint says that there is something new
    subscription = await services.bus.subscribe(live_subject(tenant, "usage"), lambda _data, _reply: news.set())
    try:
        yield b": following\n\n"  # opens the stream, so that the caller sees it is accepted
        has_ended = after > 0 and await _ends_at(services, tenant, run_id, after)
        while True:
            news.clear()
            while page := await _page(services, tenant, run_id, after, _PAGE):
                cipher = await services.keys.cipher(tenant)
                for stored in page:
                    after += 1
                    event = _run_event(stored, cipher)
                    has_ended = isinstance(event, RunEnded)
                    yield _frame(after, stored, event)
            if has_ended:
                return
            try:
                await asyncio.wait_for(news.wait(), _FOLLOW_RECHECK_S)
            except TimeoutError:
                yield b": still here\n\n"  # a reader that has left shows only when something is sent to it
    finally:
        await unsubscribe(subscription)


async def _ends_at(services: Services, tenant: str, run_id: str, version: int) -> bool:
    page = await _page(services, tenant, run_id, version - 1, 1)
    return bool(page) and isinstance(_run_event(page[0], await services.keys.cipher(tenant)), RunEnded)


def _frame(version: int, stored: StoredEvent, event: RunEvents) -> bytes:
    shown = {
        "position": stored.position,
        "time_us": decode_record(stored.record).time_us,
        **{name: _shown(getattr(event, name)) for name in event.__struct_fields__ if name not in _NOT_SHOWN},
    }
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (version, event_type(event).encode(), msgspec.json.encode(shown))


def _shown(value: Any) -> Any:
    """Payloads as what they stand for."""
    if isinstance(value, bytes):
        return msgspec.to_builtins(unpack(value)) if value else None
    return value
