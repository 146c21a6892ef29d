"""What happens in a run, as server-sent events: its history, and between it what its models are writing.

An event's id is its number in the run's history; once text has come, the place in the text follows after a colon. A reader
that comes back with the last id it has seen gets all that came after it: from the log, and from what the broker keeps of the
text. Nothing is computed for a reader, so a reader that comes back costs no call of a model.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from events.bus import live_subject, unsubscribe
from events.codec import decode_record, event_type
from events.deltas import Delta, Deltas
from events.errors import BusUnavailableError, NotFoundError
from events.run import RunEnded, StepFailed, StepSkipped, StepSucceeded, unpack
from serve.http_errors import HttpError
from serve.run_history import Entry
from serve.services import Services

log = logging.getLogger(__name__)

_RECHECK_S = 1.0  # a live hint can get lost, the log can't
_EVENT_ID = re.compile(r"([0-9]{1,12})(?::([0-9]{1,18}))?")
_NOT_SHOWN = {"type", "run_id", "run"}
_ENDS_OF_STEPS = StepSucceeded | StepFailed | StepSkipped


async def events_of(services: Services, tenant: str, run_id: str, last_event_id: str | None) -> AsyncIterator[bytes]:
    """Frames until the run has ended, those after ``last_event_id``.

    Raises:
        HttpError: The id is none of this feed's.
        NotFoundError: No such run.
    """
    match = _EVENT_ID.fullmatch(last_event_id or "0")
    if match is None:
        message = f"Last-Event-ID is the id of an event of this run, got {(last_event_id or '')[:40]!r}"
        raise HttpError(400, "invalid_request", message, param="last-event-id")
    seen = await services.runs.entries(tenant, run_id)
    if not seen:
        raise NotFoundError("run", run_id[:80])
    return _Feed(services, tenant, run_id, seen[: int(match[1])], int(match[2] or 0)).frames()


class _Feed:
    def __init__(self, services: Services, tenant: str, run_id: str, seen: Sequence[Entry], cursor: int) -> None:
        self._services, self._tenant, self._run_id = services, tenant, run_id
        self._version, self._cursor = len(seen), cursor  # what the reader has seen
        self._read_up_to = cursor  # further: texts of no use to it are passed over
        self._deltas = Deltas(services.bus)
        self._has_ended = bool(seen) and isinstance(seen[-1].event, RunEnded)
        # a reader that knows how a step ended, and nothing of its text, has no use for the text
        ends = [entry.event for entry in seen if isinstance(entry.event, _ENDS_OF_STEPS)] if not cursor else []
        self._known = {event.step for event in ends}

    async def frames(self) -> AsyncIterator[bytes]:
        news, bus = asyncio.Event(), self._services.bus

        def hear(_data: bytes, _reply: str) -> None:
            news.set()

        # the usage projection announces every position it reaches, so its hint says that there is something new
        events = await bus.subscribe(live_subject(self._tenant, "usage"), hear)
        try:
            text = await self._deltas.watch(self._tenant, self._run_id, hear)
        except BusUnavailableError:
            await unsubscribe(events)
            raise
        try:
            yield b": following\n\n"  # opens the stream, so that the caller sees it is accepted
            while True:
                news.clear()
                async for frame in self._news():
                    yield frame
                if self._has_ended:
                    return
                try:
                    await asyncio.wait_for(news.wait(), _RECHECK_S)
                except TimeoutError:
                    yield b": still here\n\n"  # a reader that has left shows only when something is sent to it
        finally:
            await unsubscribe(events)
            await unsubscribe(text)

    async def _news(self) -> AsyncIterator[bytes]:
        """All there is now. A step's text comes before its end."""
        while True:
            page = await self._services.runs.page(self._tenant, self._run_id, self._version)
            written = await self._written()  # after the page: so no text is missing of a step that ends in it
            for entry in page:
                if isinstance(entry.event, _ENDS_OF_STEPS):
                    step = entry.event.step
                    last = max((at for at, (_, delta) in enumerate(written) if delta.step == step), default=-1)
                    for cursor, delta in written[: last + 1]:
                        yield self._delta(cursor, delta)
                    del written[: last + 1]
                self._version += 1
                self._has_ended = isinstance(entry.event, RunEnded)
                yield self._event(entry)
            for cursor, delta in written:
                yield self._delta(cursor, delta)
            if not page and not written:
                return

    async def _written(self) -> list[tuple[int, Delta]]:
        cipher = await self._services.keys.cipher(self._tenant)
        try:
            found = await self._deltas.after(self._tenant, self._run_id, self._read_up_to, cipher)
        except BusUnavailableError as error:  # the history is elsewhere, and has the whole text once it is finished
            log.warning("deltas.not_read run=%s: %s", self._run_id, error)
            return []
        self._read_up_to = found[-1][0] if found else self._read_up_to
        return [(cursor, delta) for cursor, delta in found if delta.step not in self._known]

    def _event(self, entry: Entry) -> bytes:
        event = entry.event
        shown = {
            "position": entry.stored.position,
            "time_us": decode_record(entry.stored.record).time_us,
            **{name: _shown(getattr(event, name)) for name in event.__struct_fields__ if name not in _NOT_SHOWN},
        }
        return self._frame(event_type(event), msgspec.json.encode(shown))

    def _delta(self, cursor: int, delta: Delta) -> bytes:
        self._cursor = cursor
        return self._frame("run.delta", msgspec.json.encode(msgspec.structs.asdict(delta)))

    def _frame(self, kind: str, data: bytes) -> bytes:
        place = f"{self._version}:{self._cursor}" if self._cursor else str(self._version)
        return b"id: %s\nevent: %s\ndata: %s\n\n" % (place.encode(), kind.encode(), data)


def _shown(value: Any) -> Any:
    """Payloads as what they stand for."""
    if isinstance(value, bytes):
        return msgspec.to_builtins(unpack(value)) if value else None
    return value
