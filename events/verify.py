"""Walk a tenant's log and recompute its hash chain. Needs no key: hashes cover what is stored, sealed fields sealed."""

from collections.abc import Callable

import msgspec

from events.codec import GENESIS, decode_event, decode_record, next_hash
from events.errors import ChainBrokenError, NotFoundError, PlatformError
from events.scan import scan
from events.sealing import WITHOUT_KEY
from events.store import EventStore
from events.vault import Vault
from events.witness import loss


class Verified(msgspec.Struct, frozen=True):
    tenant: str
    events: int
    head_hash: str


def _say_nothing(_done: int, _of: int) -> None:
    pass


async def verify(
    store: EventStore, tenant: str, vault: Vault | None = None, progress: Callable[[int, int], None] = _say_nothing
) -> Verified:
    """Check positions, hashes, stream versions, epochs and that every event still decodes. ``progress`` is told after each
    page how many events are done, and of how many.

    Raises:
        NotFoundError: No such tenant.
        LogRewoundError: Less is there than was acknowledged, by what ``vault`` has witnessed.
        ChainBrokenError: Names the first bad position and what is wrong with it.
    """
    head = await store.head(tenant)
    if vault is not None and (rewound := await loss(store, vault, tenant, head)):
        raise rewound
    if head is None:
        raise NotFoundError("tenant", tenant)
    position, previous, epoch = 0, GENESIS, 0
    versions: dict[str, int] = {}
    async for page in scan(store, tenant, 0, head.position):
        for stored in page:
            position += 1
            previous = next_hash(previous, stored.record)
            if stored.hash != previous:
                raise ChainBrokenError(tenant, position, "its hash does not follow from its bytes and the hash before")
            epoch = _check_meaning(tenant, position, stored.record, versions, epoch)
        progress(position, head.position)
    if previous != head.hash:
        raise ChainBrokenError(tenant, position, "its hash is not the one that the store remembers as head")
    return Verified(tenant, position, previous.hex())


def _check_meaning(tenant: str, position: int, raw: bytes, versions: dict[str, int], epoch: int) -> int:
    try:
        record = decode_record(raw)
        decode_event(record.data, WITHOUT_KEY)
    except PlatformError as error:
        raise ChainBrokenError(tenant, position, str(error)) from error
    expected = versions.get(record.stream, 0) + 1
    if record.version != expected:
        raise ChainBrokenError(tenant, position, f"version {record.version} of {record.stream!r}, expected {expected}")
    if record.epoch < epoch:
        raise ChainBrokenError(tenant, position, f"epoch {record.epoch} after epoch {epoch}: two writers")
    versions[record.stream] = record.version
    return record.epoch
