"""What all admin routes share: who may call them, how they ask a tenant, and the two routers they hang on."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response

from events.catalog import DomainCommand
from events.envelope import Ok
from events.errors import KeyRefusedError, NotFoundError
from events.ids import derived_id
from events.slices import TENANT_ID
from events.tenant import CreateTenant
from serve.auth import bearer
from serve.command_route import CommandRoute
from serve.services import Services

POSITION_MAX = 2**40 - 1  # what five bytes of a stream's index can hold


async def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def admin_only(request: Request, authorization: Annotated[str | None, Header()] = None) -> None:
    if not request.app.state.services.authenticator.is_admin(bearer(authorization)):
        raise KeyRefusedError


IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]
Svc = Annotated[Services, Depends(services_of)]
router = APIRouter(prefix="/admin/v1", dependencies=[Depends(admin_only)], tags=["admin"])
# writes, which need none of FastAPI's dependency solving
commands = APIRouter(prefix="/admin/v1", dependencies=[Depends(admin_only)], tags=["admin"], route_class=CommandRoute)


def command_id_for(services: Services, tenant: str, idempotency_key: str | None) -> str:
    return derived_id(tenant, idempotency_key) if idempotency_key else services.asker.new_id()


async def ask(services: Services, tenant: str, command: DomainCommand, command_id: str | None = None) -> Ok:
    """An id that can't be a tenant's gets the same answer as one that isn't."""
    if not TENANT_ID.fullmatch(tenant):
        raise NotFoundError("tenant", tenant[:80])
    if not isinstance(command, CreateTenant) and not await services.tenants.exists(tenant):
        raise NotFoundError("tenant", tenant)
    return await services.asker.ask(tenant, command, actor="admin", command_id=command_id)


def stamp(response: Response, ok: Ok) -> None:
    stamp_position(response, ok.position)


def stamp_position(response: Response, position: int) -> None:
    response.headers["x-tenantry-position"] = str(position)


async def head_position(services: Services, tenant: str) -> int:
    head = await services.store.head(tenant) if TENANT_ID.fullmatch(tenant) else None
    if head is None:
        raise NotFoundError("tenant", tenant[:80])
    return head.position
