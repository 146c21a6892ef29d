"""Log-rewind detection: the vault remembers how far each log was acknowledged, so that a store that comes back with less
(an old file restored, a failover to a replica that lagged) is noticed, also when every process that knew is gone.

Written aside, a few times a second for all tenants of a shard at once, so no append waits for it. What a rewind could
hide is therefore bounded: acknowledgements of the last ``PERIOD_S`` before everything died at once. While one process
that saw them lives, not even those: it refuses to append to a log that is shorter than its own memory.
"""

import asyncio
import logging

from events.errors import LogRewoundError, PlatformError
from events.store import EventStore, Head
from events.vault import Vault, Witnessed

log = logging.getLogger(__name__)

PERIOD_S = 0.2


class Witness:
    """One per shard. Costs one write to the vault per period in which anything was appended."""

    def __init__(self, vault: Vault, period_s: float = PERIOD_S) -> None:
        self._vault, self._period_s = vault, period_s
        self._new: dict[str, Witnessed] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, tenant: str, head: Witnessed) -> None:
        """This end of the log is about to be acknowledged."""
        self._new[tenant] = head
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="witness")

    async def _run(self) -> None:
        while self._new:
            await asyncio.sleep(self._period_s)  # gather: one write for all
            await self.flush()
        self._task = None

    async def flush(self) -> None:
        """Tell the vault now. A vault that is away is told later: appends go on meanwhile, unwitnessed."""
        heads, self._new = self._new, {}
        if not heads:
            return
        try:
            await self._vault.witness(heads)
        except PlatformError as error:
            log.warning("witness.unwritten tenants=%s: %s", len(heads), error)
            self._new = {**heads, **self._new}

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        await self.flush()


async def loss(store: EventStore, vault: Vault, tenant: str, head: Head | None) -> LogRewoundError | None:
    """What is wrong with a log that ends at ``head``, compared with what was acknowledged; None: nothing."""
    seen = await vault.witnessed(tenant)
    if seen is None:
        return None
    found = head.position if head else 0
    if found < seen.position:
        return LogRewoundError(tenant, seen.position, found)
    assert head is not None
    if found == seen.position:
        digest = head.hash
    else:
        page = await store.read(tenant, seen.position - 1, 1)
        digest = page[0].hash if page else b""
    return None if digest == seen.hash else LogRewoundError(tenant, seen.position, seen.position - 1)


async def accept_loss(store: EventStore, vault: Vault, tenant: str) -> Witnessed | None:
    """A person has accepted that the log goes on from where it ends now. Epochs rise above all that were ever given
    out, so that no activation from before the loss can write.
    """
    seen = await vault.witnessed(tenant)
    claimed = await store.claim(tenant)
    while seen is not None and claimed.epoch <= seen.epoch:
        claimed = await store.claim(tenant)
    accepted = Witnessed(claimed.position, claimed.hash, claimed.epoch) if claimed.position else None
    await vault.accept(tenant, accepted)
    return accepted
