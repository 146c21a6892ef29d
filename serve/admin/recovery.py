"""What can't be undone: accept that a log has lost its end, erase a tenant."""

import logging

import msgspec
from pydantic import BaseModel

from events.tenant import EraseTenant
from events.verify import verify
from events.witness import accept_loss, loss
from serve.admin.log import VerifiedOut
from serve.admin.routes import Svc, ask, head_of, keyed_writes, router
from serve.auth import push_revocation
from serve.erasure import erase_everywhere

log = logging.getLogger(__name__)


class PlaceOut(BaseModel):
    name: str
    ok: bool
    detail: str


class ErasureOut(BaseModel):
    """``ok``: nothing personal of the tenant can be read in any of the places any more."""

    tenant: str
    ok: bool
    places: list[PlaceOut]


@keyed_writes.post("/tenants/{tenant}/accept-loss")
async def accept_lost_events(services: Svc, tenant: str) -> VerifiedOut:
    """Accept that the tenant's log ends where it does now, although more was acknowledged: that loss is then final. What
    is left is verified first. The tenant stays halted until it is resumed.
    """
    head = await head_of(services, tenant)
    verified = await verify(services.store, tenant)
    if lost := await loss(services.store, services.vault, tenant, head):
        accepted = await accept_loss(services.store, services.vault, tenant)
        log.critical("tenant.loss_accepted tenant=%s goes_on_after=%s: %s", tenant, accepted, lost)
    return VerifiedOut(**msgspec.structs.asdict(verified))


@router.post("/tenants/{tenant}/erase")
async def erase_tenant(services: Svc, tenant: str) -> ErasureOut:
    """Destroy the tenant's personal data for good, and report place by place whether any of it can still be read. The
    log closes with the fact; a halted one, which takes no fact any more, just closes. Safe to repeat.
    """
    head = await head_of(services, tenant)
    if head.status == "active":
        await ask(services, tenant, EraseTenant())
    push_revocation(services.bus, tenant)
    await services.store.claim(tenant)  # whoever still serves it is fenced
    places = [
        PlaceOut(name=name, ok=ok, detail=detail) async for name, ok, detail in erase_everywhere(services, tenant)
    ]
    report = ErasureOut(tenant=tenant, ok=all(place.ok for place in places), places=places)
    log.warning("tenant.erased tenant=%s proven=%s", tenant, report.ok)
    return report
