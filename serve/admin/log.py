"""A tenant's log: read it, follow it, verify it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from events.bus import live_subject, unsubscribe
from events.codec import StoredEvent, decode_plain, decode_record
from events.errors import NotFoundError, PlatformError
from events.sealing import Cipher
from events.slices import TENANT_ID
from events.verify import verify
from serve.admin.routes import POSITION_MAX, Svc, head_position, router
from serve.http_errors import as_http_error, error_body
from serve.services import Services

_PROGRESS_PERIOD_S = 1.0
_FOLLOW_RECHECK_S = 1.0  # a live hint can get lost, the log can't


class EventOut(BaseModel):
    position: int
    stream: str
    version: int
    type: str
    time_us: int
    command_id: str
    correlation_id: str
    actor: str
    epoch: int
    hash: str
    data: dict[str, Any]


class EventPage(BaseModel):
    data: list[EventOut]
    next_after: int | None = None


class VerifiedOut(BaseModel):
    tenant: str
    events: int
    head_hash: str


@router.get("/tenants/{tenant}/verify", response_model=VerifiedOut)
async def verify_tenant(services: Svc, tenant: str, follow: bool = False) -> Any:
    """Walk the tenant's hash chain from its first event. 500 `chain_broken` names the first bad position. With
    `follow=true`, server-sent events: once a second `{"done", "of"}`, at last the answer, or `{"error"}`.
    """
    if not TENANT_ID.fullmatch(tenant):
        raise NotFoundError("tenant", tenant[:80])
    if follow:
        await head_position(services, tenant)
        return StreamingResponse(_verifying(services, tenant), media_type="text/event-stream")
    return VerifiedOut(**msgspec.structs.asdict(await verify(services.store, tenant, services.vault)))


async def _verifying(services: Services, tenant: str) -> AsyncIterator[bytes]:
    seen = (0, 0)

    def progress(done: int, of: int) -> None:
        nonlocal seen
        seen = (done, of)

    work = asyncio.create_task(verify(services.store, tenant, services.vault, progress))
    try:
        while not (await asyncio.wait([work], timeout=_PROGRESS_PERIOD_S))[0]:
            yield b'data: {"done": %d, "of": %d}\n\n' % seen
        try:
            yield b"data: %b\n\n" % msgspec.json.encode(await work)
        except PlatformError as error:
            yield b"data: %b\n\n" % error_body(as_http_error(error))
    finally:
        work.cancel()  # whoever asked has left


@router.get("/tenants/{tenant}/events", response_model=EventPage)
async def tenant_events(
    services: Svc,
    tenant: str,
    after: Annotated[int, Query(ge=0, le=POSITION_MAX)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    follow: bool = False,
) -> Any:
    """Events after a position, as a page, or with `follow=true` as server-sent events without end (`id:` is the position)."""
    await head_position(services, tenant)
    if follow:
        return StreamingResponse(_follow(services, tenant, after), media_type="text/event-stream")
    cipher = await services.keys.cipher(tenant)
    page = [_event_out(stored, cipher) for stored in await services.store.read(tenant, after, limit)]
    return EventPage(data=page, next_after=page[-1].position if len(page) == limit else None)


async def _follow(services: Services, tenant: str, after: int) -> AsyncIterator[bytes]:
    news = asyncio.Event()
    # the usage projection announces every position it reaches, so its hint says that there is something new
    subscription = await services.bus.subscribe(live_subject(tenant, "usage"), lambda _data, _reply: news.set())
    try:
        yield b": following\n\n"  # opens the stream, so that the caller sees it is accepted
        while True:
            news.clear()
            while page := await services.store.read(tenant, after):
                cipher = await services.keys.cipher(tenant)
                for stored in page:
                    after = stored.position
                    yield b"id: %d\ndata: %s\n\n" % (after, _event_out(stored, cipher).model_dump_json().encode())
            try:
                await asyncio.wait_for(news.wait(), _FOLLOW_RECHECK_S)
            except TimeoutError:
                yield b": still here\n\n"  # a reader that has left shows only when something is sent to it
    finally:
        await unsubscribe(subscription)


def _event_out(stored: StoredEvent, cipher: Cipher) -> EventOut:
    record = decode_record(stored.record)
    data: dict[str, Any] = msgspec.to_builtins(decode_plain(record.data, cipher))
    return EventOut(
        position=stored.position,
        type=data.pop("type"),
        hash=stored.hash.hex(),
        data=data,
        **{
            name: getattr(record, name)
            for name in ("stream", "version", "time_us", "command_id", "correlation_id", "actor", "epoch")
        },
    )
