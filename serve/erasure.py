"""Erase a tenant's personal data, and prove it: every place that could hold some is emptied, then looked at again.

A part that keeps data of tenants somewhere else adds its place to ``PLACES``. Both methods are safe to repeat; an erasure
that was cut short is simply asked for again.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

import msgspec

from events.archive import Archive
from events.catalog import DomainEvent
from events.codec import StoredEvent, decode_record
from events.deltas import Deltas
from events.errors import IntegrityError
from events.keys import CACHE_TTL_S
from events.messages import personal_fields
from events.objects import Objects
from events.sealing import WITHOUT_KEY, is_sealed
from events.vault import DestroyedKey
from events.verify import verify
from events.work import WorkQueue
from projections.actor import PROJECTIONS
from serve.services import Services
from serve.usage import NotProjectedError, wait_for_projection

Checked = tuple[bool, str]
_PERSONAL = {kind.__struct_config__.tag: personal_fields(kind) for kind in DomainEvent.__args__}


class Place(Protocol):
    name: str

    async def erase(self, services: Services, tenant: str) -> None:
        """Remove what is there, or make it unreadable."""
        ...

    async def check(self, services: Services, tenant: str) -> Checked:
        """Look: is nothing personal readable there any more, and what was found."""
        ...


class Tally(msgspec.Struct):
    """Personal fields of events: those that only the destroyed key could open, and positions with some in clear."""

    sealed: int = 0
    clear_at: list[int] = []

    def add(self, events: Iterable[StoredEvent]) -> None:
        for stored in events:
            plain = msgspec.msgpack.decode(decode_record(stored.record).data)
            self.sealed += sum(map(is_sealed, plain.values()))
            if any(name in plain and not is_sealed(plain[name]) for name in _PERSONAL.get(plain["type"], ())):
                self.clear_at.append(stored.position)

    @property
    def verdict(self) -> Checked:
        if self.clear_at:
            shown = ", ".join(map(str, self.clear_at[:10]))
            return False, (
                f"{len(self.clear_at)} events from before encryption hold personal data in clear (positions {shown}): "
                "no key can erase them, the tenant's log itself would have to be deleted"
            )
        return True, f"{self.sealed} sealed fields, which no key opens any more"


class KeyPlace:
    name = "vault"

    async def erase(self, services: Services, tenant: str) -> None:
        await services.keys.destroy(tenant)
        await services.vault.forget_history()

    async def check(self, services: Services, tenant: str) -> Checked:
        record = await services.vault.key(tenant)
        if not isinstance(record, DestroyedKey):
            return False, "the tenant's key is still there"
        return True, "the tenant's key is destroyed; older backups of the vault may still hold it"


class LogPlace:
    name = "log"

    async def erase(self, services: Services, tenant: str) -> None:
        """Its fields are sealed under the destroyed key; the events stay, so that the chain still proves itself."""

    async def check(self, services: Services, tenant: str) -> Checked:
        if await services.keys.cipher(tenant) is not WITHOUT_KEY:
            return False, "the log's sealed fields can still be opened"
        tally, at = Tally(), 0
        while page := await services.store.read(tenant, at):
            tally.add(page)
            at = page[-1].position
        return tally.verdict


class ChainPlace:
    name = "hash chain"

    async def erase(self, services: Services, tenant: str) -> None:
        """Nothing to do: hashes cover ciphertext."""

    async def check(self, services: Services, tenant: str) -> Checked:
        head = await services.store.head(tenant)
        if head is None or head.status != "erased":
            return False, "the log is not closed"
        try:
            verified = await verify(services.store, tenant)
        except IntegrityError as error:
            return False, str(error)
        return True, f"{verified.events} events still form one chain; the log is closed for ever"


class ArchivePlace:
    name = "archive"

    async def erase(self, services: Services, tenant: str) -> None:
        """As the log: segments hold the same sealed bytes."""

    async def check(self, services: Services, tenant: str) -> Checked:
        if not services.settings.archive_url:
            return True, "there is none"
        tally, segments = Tally(), await Archive(services.settings.archive_url).segments(tenant)
        for segment in segments:
            await asyncio.to_thread(_count_segment, tally, segment.path)
        ok, detail = tally.verdict
        return ok, f"{len(segments)} segments: {detail}" if segments else "it holds nothing of the tenant"


def _count_segment(tally: Tally, path: str) -> None:
    from events.segments import SegmentReader  # noqa: PLC0415 - pyarrow, and erasures are rare

    for page in SegmentReader(path):
        tally.add(page)


class StorePlace:
    name = "replies, snapshots, timers"

    async def erase(self, services: Services, tenant: str) -> None:
        await services.store.erase(tenant)

    async def check(self, services: Services, tenant: str) -> Checked:
        left = await services.store.leftovers(tenant)
        kept = {name: count for name, count in left.items() if count}
        return not kept, f"still there: {kept}" if kept else f"none of {', '.join(left)} left"


class QueuePlace:
    name = "queue, dead letters"

    async def erase(self, services: Services, tenant: str) -> None:
        await services.inbox.purge(tenant)

    async def check(self, services: Services, tenant: str) -> Checked:
        queued, dead = await services.inbox.left(tenant)
        if queued or dead:
            return False, f"{queued} queued commands and {dead} dead letters came meanwhile: erase again"
        return True, "no queued command and no dead letter of the tenant"


class OutcomesPlace:
    name = "outcomes"

    async def erase(self, services: Services, tenant: str) -> None:
        await services.outcomes.erase(tenant)

    async def check(self, services: Services, tenant: str) -> Checked:
        left = await services.outcomes.left(tenant)
        if left:
            return False, f"{left} outcomes of queued commands came meanwhile: erase again"
        return True, "none of queued commands left"


class KeptAnswersPlace:
    name = "kept answers"

    async def erase(self, services: Services, tenant: str) -> None:
        await services.keyed_answers.erase(tenant)
        await services.cached_answers.erase(tenant)

    async def check(self, services: Services, tenant: str) -> Checked:
        keyed, cached = await services.keyed_answers.count(tenant), await services.cached_answers.count(tenant)
        if keyed or cached:
            return (
                False,
                f"{keyed} answers under Idempotency-Keys and {cached} in the cache came meanwhile: erase again",
            )
        return True, "no answer under an Idempotency-Key or in the response cache"


class ReadModelsPlace:
    name = "read models"

    async def erase(self, services: Services, tenant: str) -> None:
        head = await services.store.head(tenant)
        for projection in PROJECTIONS:
            try:
                await wait_for_projection(services, projection, tenant, head.position if head else 0)
            except NotProjectedError:
                continue  # the check tells
            await services.models.erase(projection, tenant)

    async def check(self, services: Services, tenant: str) -> Checked:
        head = await services.store.head(tenant)
        for projection in PROJECTIONS:
            at = await services.models.checkpoint(projection, tenant)
            if head is not None and at < head.position:
                return False, f"{projection.name} is at {at} of {head.position}: erase again when it is there"
            if await services.models.fields(projection, tenant):
                return False, f"{projection.name} still has fields of the tenant"
            if await services.models.indexes(projection, tenant):
                return False, f"{projection.name} still has indexes of the tenant"
        return True, f"{', '.join(projection.name for projection in PROJECTIONS)}: empty"


class WorkPlace:
    name = "work queue"

    async def erase(self, services: Services, tenant: str) -> None:
        await WorkQueue(services.bus).purge(tenant)

    async def check(self, services: Services, tenant: str) -> Checked:
        left = await WorkQueue(services.bus).count(tenant)
        return not left, f"{left} steps of runs wait for a runner" if left else "no step of a run waits for a runner"


class DeltasPlace:
    name = "text on its way"

    async def erase(self, services: Services, tenant: str) -> None:
        await Deltas(services.bus).purge(tenant)

    async def check(self, services: Services, tenant: str) -> Checked:
        left = await Deltas(services.bus).count(tenant)
        return not left, f"{left} pieces that models have written" if left else "nothing that models have written"


class ObjectsPlace:
    name = "object area"

    async def erase(self, services: Services, tenant: str) -> None:
        if services.settings.objects_url:
            await Objects(services.settings.objects_url, services.keys).erase(tenant)

    async def check(self, services: Services, tenant: str) -> Checked:
        if not services.settings.objects_url:
            return True, "there is none"
        left = await Objects(services.settings.objects_url, services.keys).count(tenant)
        return not left, f"{left} objects are still there" if left else "it holds nothing of the tenant"


class CachesPlace:
    name = "caches"

    async def erase(self, services: Services, tenant: str) -> None:
        """They forget by themselves."""

    async def check(self, services: Services, tenant: str) -> Checked:
        return (
            True,
            f"memory of running processes can't be looked at from here; they forget keys within {CACHE_TTL_S:g} s",
        )


PLACES: list[Place] = [
    # the queue first: what it still holds could write outcomes
    QueuePlace(), OutcomesPlace(), KeptAnswersPlace(), StorePlace(), KeyPlace(), LogPlace(), ChainPlace(), ArchivePlace(), ReadModelsPlace(),
    WorkPlace(), DeltasPlace(), ObjectsPlace(), CachesPlace(),
]  # fmt: skip


async def erase_everywhere(services: Services, tenant: str) -> AsyncIterator[tuple[str, bool, str]]:
    """Erase all places, then check them. Yields (place, is nothing readable there, what was found). The tenant's log has
    to be closed before.
    """
    for place in PLACES:
        await place.erase(services, tenant)
    for place in PLACES:
        ok, detail = await place.check(services, tenant)
        yield place.name, ok, detail
