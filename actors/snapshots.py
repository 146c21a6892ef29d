"""Snapshots of a tenant in memory: a cache of its log, sealed under the tenant's key, and done without where it does not fit."""

import logging

import msgspec

from actors.aggregate import STATE_SCHEMA, State
from actors.memory import Memory
from actors.persistent import decode_hook, encode_hook
from events.errors import KeyUnreadableError, PlatformError
from events.failpoints import failpoint
from events.sealing import Cipher, open_bytes, seal_bytes
from events.store import EventStore, Head, Snapshot

log = logging.getLogger(__name__)

SNAPSHOT_EVERY_EVENTS = 1_000  # bounds what an activation must replay to some milliseconds
_SEALED_AS = "snapshot"  # so that no other sealed bytes are opened as one


class Folded(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot holds: the state, and how many events each stream had by then."""

    state: State
    versions: dict[str, int]


_encode = msgspec.msgpack.Encoder(enc_hook=encode_hook).encode
_decode = msgspec.msgpack.Decoder(Folded, dec_hook=decode_hook).decode


async def load_snapshot(store: EventStore, tenant: str, head: Head, cipher: Cipher, memory: Memory) -> None:
    """Begin at the newest snapshot that fits the log, which ends at ``head``; at its first event where none does."""
    for snapshot in await store.load_snapshots(tenant):
        if snapshot.schema != STATE_SCHEMA or not 0 < snapshot.position <= head.position:
            continue
        page = await store.read(tenant, snapshot.position - 1, 1)
        if not page or page[0].hash != snapshot.hash:
            continue
        try:
            folded = _decode(open_bytes(cipher, _SEALED_AS, snapshot.state) or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, KeyUnreadableError):
            log.warning("tenant.snapshot_unreadable tenant=%s position=%s", tenant, snapshot.position)
            continue
        memory.begin_at(folded.state, folded.versions, snapshot.position, snapshot.hash)
        return


async def save_snapshot(store: EventStore, tenant: str, cipher: Cipher, memory: Memory) -> None:
    """Losing it costs a longer replay, so a store that is away is no reason to fail."""
    state = seal_bytes(cipher, _SEALED_AS, _encode(Folded(memory.state, memory.versions)))
    snapshot = Snapshot(STATE_SCHEMA, memory.position, memory.head, state)
    failpoint("snap.before_write")
    try:
        await store.save_snapshot(tenant, snapshot)
    except PlatformError as error:
        log.warning("tenant.snapshot_lost tenant=%s position=%s: %s", tenant, snapshot.position, error)
