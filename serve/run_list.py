"""Lists of a tenant's runs, from their read model: the newest first, by status, saga and time of their start."""

import base64
from typing import Annotated, Literal

import msgspec
from fastapi import Query
from pydantic import BaseModel, Field

from events.clock import TIME_US_MAX
from projections.runs import ALL, STUCK, RunRow, RunsProjection, read_row, root_of, row_fields, saga_index, status_index
from serve.http_errors import HttpError
from serve.services import Services
from serve.usage import wait_for_projection

RunFilter = Literal[
    "running", "compensating", "blocked", "completed", "compensated", "cancelled", "timed_out", "failed", "stuck"
]
_STUCK_MAX = 1_000  # a person has to look at each
_SCAN_MAX = (
    10_000  # rows looked at for one page: a filter that fits few of them gets its next page with the next request
)


class ListedRun(BaseModel):
    """A run as lists show it. `stuck`: what of it could not be undone, and waits for a person: `tenantry runs retry`."""

    id: str
    saga: str
    version: int
    status: str
    started_us: int
    ended_us: int
    priority: int
    forked_from: str
    tags: dict[str, str]
    error_code: str
    cost_nano_usd: int
    input_tokens: int
    output_tokens: int
    stuck: list[str]


class RunList(BaseModel):
    """`next` is the `after` of the following page; null on the last one. `position`: all up to there is in the list."""

    data: list[ListedRun]
    next: str | None
    position: int


class RunQuery(BaseModel):
    status: RunFilter | None = None
    saga: Annotated[str, Field(max_length=100)] = ""
    since_us: Annotated[int, Field(ge=0, le=TIME_US_MAX, description="Started at this time or after it")] = 0
    until_us: Annotated[int, Field(ge=0, le=TIME_US_MAX, description="Started before this time")] = TIME_US_MAX
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    after: Annotated[str, Field(max_length=400)] = ""


Wanted = Annotated[RunQuery, Query()]


async def list_of(services: Services, tenant: str, wanted: RunQuery) -> RunList:
    """Everything acknowledged before this call is in it.

    Raises:
        NotFoundError: No such tenant.
        NotProjectedError: The read model is not there within five seconds.
        HttpError: ``after`` is none that a list has given.
    """
    head = await services.store.head(tenant)
    position = await wait_for_projection(services, RunsProjection(), tenant, head.position if head else 0)
    stuck = await stuck_steps(services, tenant)
    if wanted.status == "stuck":
        rows = [row for row in await _rows(services, tenant, sorted({*map(root_of, stuck)})) if _fits(row, wanted)]
        rows.sort(key=lambda row: (row.started_us, row.id), reverse=True)
        return RunList(data=[_listed(row, stuck) for row in rows], next=None, position=position)
    found, after = await _page(services, tenant, wanted)
    return RunList(data=[_listed(row, stuck) for row in found], next=_cursor(after), position=position)


async def stuck_steps(services: Services, tenant: str) -> list[str]:
    """Compensations that have failed for good, ``run#step``."""
    ranked = await services.models.ranked(RunsProjection(), tenant, STUCK, _STUCK_MAX)
    return [member for _, member in ranked]


async def _page(services: Services, tenant: str, wanted: RunQuery) -> tuple[list[RunRow], tuple[int, str] | None]:
    """Rows that fit, and where to go on; None at the end."""
    index = saga_index(wanted.saga) if wanted.saga else status_index(wanted.status) if wanted.status else ALL
    after, found, looked_at = _place(wanted.after), list[RunRow](), 0
    while looked_at < _SCAN_MAX:
        ranked = await services.models.ranked(
            RunsProjection(),
            tenant,
            index,
            wanted.limit,
            lowest=wanted.since_us,
            highest=wanted.until_us - 1,
            after=after,
        )
        for row in await _rows(services, tenant, [run_id for _, run_id in ranked]):
            if _fits(row, wanted):
                found.append(row)
                if len(found) == wanted.limit:
                    return found, (row.started_us, row.id)
        if len(ranked) < wanted.limit:
            return found, None
        after, looked_at = ranked[-1], looked_at + len(ranked)
    return found, after


async def _rows(services: Services, tenant: str, run_ids: list[str]) -> list[RunRow]:
    fields = [field for run_id in run_ids for field in row_fields(run_id)]
    values = await services.models.some_fields(RunsProjection(), tenant, fields)
    width = len(fields) // len(run_ids) if run_ids else 0
    rows = [read_row(run_id, values[at * width : (at + 1) * width]) for at, run_id in enumerate(run_ids)]
    return [row for row in rows if row is not None]


def _fits(row: RunRow, wanted: RunQuery) -> bool:
    is_status = wanted.status in (None, "stuck", row.status)
    return is_status and wanted.saga in ("", row.saga) and wanted.since_us <= row.started_us < wanted.until_us


def _listed(row: RunRow, stuck: list[str]) -> ListedRun:
    own = [member for member in stuck if root_of(member) == row.id]
    return ListedRun(**{**msgspec.structs.asdict(row), "stuck": own})


def _cursor(place: tuple[int, str] | None) -> str | None:
    return None if place is None else base64.urlsafe_b64encode(f"{place[0]}:{place[1]}".encode()).decode()


def _place(cursor: str) -> tuple[int, str] | None:
    if not cursor:
        return None
    try:
        score, _, run_id = base64.urlsafe_b64decode(cursor).decode().partition(":")
        return int(score), run_id
    except ValueError as error:
        message = "after is the `next` of the page before, as it came"
        raise HttpError(400, "invalid_request", message, param="after") from error
