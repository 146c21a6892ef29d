"""Old events in files, and whole logs on their way out and in. Pages, not files: whoever asks keeps the file."""

import asyncio
from typing import Annotated

import msgspec
from fastapi import Query, Request, Response
from pydantic import BaseModel

from events.archive import Archive, archive_log
from events.codec import StoredEvent
from events.errors import InvalidCommandError, NotFoundError
from events.importing import import_events
from events.slices import TENANT_ID
from serve.admin.routes import POSITION_MAX, Svc, head_position, keyed_writes, router, stamp_position
from serve.http_errors import HttpError
from serve.services import Services

_PAGE_EVENTS, _PAGE_BYTES = 2_000, 1024 * 1024
_MSGPACK = "application/msgpack"
_decode_rows = msgspec.msgpack.Decoder(list[StoredEvent]).decode
_encode = msgspec.msgpack.Encoder().encode


class SegmentOut(BaseModel):
    first: int
    last: int
    bytes: int


class ArchiveOut(BaseModel):
    """``through``: the last position in files; what is behind it lies in Valkey."""

    tenant: str
    position: int
    through: int
    segments: list[SegmentOut]


class ArchiveList(BaseModel):
    data: list[ArchiveOut]


class ArchivedOut(BaseModel):
    """``more``: ask again, there is another segment to seal."""

    tenant: str
    moved: int
    through: int
    position: int
    more: bool


class ImportedOut(BaseModel):
    tenant: str
    position: int


def _archive(services: Services) -> Archive:
    if not services.settings.archive_url:
        raise HttpError(
            409, "no_archive", "no archive is configured: set TENANTRY_ARCHIVE_URL to a path and start again"
        )
    return Archive(services.settings.archive_url)


@router.get("/archive")
async def list_archive(services: Svc) -> ArchiveList:
    """Tenants that have events in files, and where these begin and end."""
    archive = _archive(services)
    names = [name for name in await archive.tenants() if TENANT_ID.fullmatch(name)]
    return ArchiveList(data=[await _archive_of(services, archive, name) for name in names])


@router.get("/tenants/{tenant}/archive")
async def show_archive(services: Svc, tenant: str) -> ArchiveOut:
    await head_position(services, tenant)
    return await _archive_of(services, _archive(services), tenant)


async def _archive_of(services: Services, archive: Archive, tenant: str) -> ArchiveOut:
    head = await services.store.head(tenant)
    segments = await archive.segments(tenant)
    sizes = [await archive.size(segment) for segment in segments]
    return ArchiveOut(
        tenant=tenant,
        position=head.position if head else 0,
        through=segments[-1].last if segments else 0,
        segments=[
            SegmentOut(first=each.first, last=each.last, bytes=size) for each, size in zip(segments, sizes, strict=True)
        ],
    )


@keyed_writes.post("/tenants/{tenant}/archive")
async def archive_tenant(
    services: Svc,
    tenant: str,
    keep: Annotated[int | None, Query(ge=0, description="Newest events to leave. [default: the setting]")] = None,
    least: Annotated[int | None, Query(ge=1, description="Fewer are not worth a file. [default: the setting]")] = None,
) -> ArchivedOut:
    """Move old events to files: at most one segment a call, so that nobody waits long. Safe to repeat, and beside the
    job that does the same by itself.
    """
    position, archive = await head_position(services, tenant), _archive(services)
    keep = services.settings.archive_keep_events if keep is None else keep
    least = services.settings.archive_least_events if least is None else least
    moved = await archive_log(services.store, archive, tenant, keep=keep, least=least, segments_max=1)
    segments = await archive.segments(tenant)
    through = segments[-1].last if segments else 0
    more = moved > 0 and position - keep - through >= least
    return ArchivedOut(tenant=tenant, moved=moved, through=through, position=position, more=more)


@router.get("/tenants/{tenant}/log", response_class=Response)
async def export_page(services: Svc, tenant: str, after: Annotated[int, Query(ge=0, le=POSITION_MAX)] = 0) -> Response:
    """A page of the log as it was written: MessagePack, an array of [position, record, hash]. `x-tenantry-position` says
    where the log ends. `tenantry export` makes a file of all pages.
    """
    position = await head_position(services, tenant)
    rows = await services.store.read(tenant, after, _PAGE_EVENTS)
    size = count = 0
    while count < len(rows) and (count == 0 or size + len(rows[count].record) <= _PAGE_BYTES):
        size += len(rows[count].record)
        count += 1
    response = Response(await asyncio.to_thread(_encode, rows[:count]), media_type=_MSGPACK)
    stamp_position(response, position)
    return response


@router.post("/tenants/{tenant}/log")
async def import_page(services: Svc, tenant: str, request: Request, response: Response) -> ImportedOut:
    """Append a page of an exported log: into a store that has none of that tenant, or what came before of this one.
    Repeating it is harmless. 409: the store has another log under that id.
    """
    if not TENANT_ID.fullmatch(tenant):
        raise NotFoundError("tenant", tenant[:80])
    try:
        rows = _decode_rows(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidCommandError(f"not a page of a log: {error}") from error
    if not rows:
        raise InvalidCommandError("a page of a log holds at least one event")
    position = await import_events(services.store, tenant, rows)
    stamp_position(response, position)
    return ImportedOut(tenant=tenant, position=position)
