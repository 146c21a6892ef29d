"""What all admin routes share: who may call them, how they ask a tenant, and the two routers they hang on."""

from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import Field

from events.catalog import DomainCommand
from events.envelope import Ok
from events.errors import KeyRefusedError, NotFoundError
from events.ids import derived_id, is_derived
from events.money import nano_usd
from events.slices import TENANT_ID
from events.store import Head
from events.tenant import CreateTenant
from serve.auth import Principal, bearer
from serve.command_route import CommandRoute
from serve.http_errors import HttpError
from serve.keyed_route import KeyedRoute
from serve.services import Services

POSITION_MAX = 2**40 - 1  # what five bytes of a stream's index can hold


async def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def admin_only(request: Request, authorization: Annotated[str | None, Header()] = None) -> None:
    if not request.app.state.services.authenticator.is_admin(bearer(authorization)):
        raise KeyRefusedError


IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key with the same request gets the same answer and runs once; with another one it is refused",
    ),
]


async def takes_key(idempotency_key: IdempotencyKey = None) -> None:
    """Declares the header; the route itself looks at it."""


Svc = Annotated[Services, Depends(services_of)]
Usd = Annotated[str, Field(max_length=40, examples=["25.00"], description="USD, an exact decimal")]
router = APIRouter(prefix="/admin/v1", dependencies=[Depends(admin_only)], tags=["admin"])
# writes, which need none of FastAPI's dependency solving
# writes that are no commands of a tenant, with an Idempotency-Key of their own
keyed_writes = APIRouter(
    prefix="/admin/v1",
    dependencies=[Depends(admin_only), Depends(takes_key)],
    tags=["admin"],
    route_class=KeyedRoute,
)
commands = APIRouter(prefix="/admin/v1", dependencies=[Depends(admin_only)], tags=["admin"], route_class=CommandRoute)


class Who(NamedTuple):
    """Who asks a tenant for something: an operator, or one of the tenant's own keys."""

    tenant: str
    by_key: str = ""

    @classmethod
    def caller(cls, principal: Principal) -> "Who":
        return cls(principal.tenant, principal.key_id)

    @property
    def actor(self) -> str:
        return f"key:{self.by_key}" if self.by_key else "admin"

    def command_id(self, services: Services, idempotency_key: str | None) -> str:
        """Each caller has Idempotency-Keys of its own."""
        if not idempotency_key:
            return services.asker.new_id()
        return derived_id(self.tenant, idempotency_key, *([self.by_key] if self.by_key else []))


def command_id_for(services: Services, tenant: str, idempotency_key: str | None) -> str:
    return Who(tenant).command_id(services, idempotency_key)


async def ask(services: Services, who: str | Who, command: DomainCommand, command_id: str | None = None) -> Ok:
    """An id that can't be a tenant's gets the same answer as one that isn't."""
    tenant, actor = (who, "admin") if isinstance(who, str) else (who.tenant, who.actor)
    if not TENANT_ID.fullmatch(tenant):
        raise NotFoundError("tenant", tenant[:80])
    if not isinstance(command, CreateTenant) and not await services.tenants.exists(tenant):
        raise NotFoundError("tenant", tenant)
    is_keyed = command_id is not None and is_derived(command_id)
    return await services.asker.ask(tenant, command, actor=actor, command_id=command_id, is_keyed=is_keyed)


def stamp(response: Response, ok: Ok) -> None:
    stamp_position(response, ok.position)


def stamp_position(response: Response, position: int) -> None:
    response.headers["x-tenantry-position"] = str(position)


async def head_of(services: Services, tenant: str) -> Head:
    """What the store knows of the tenant's log. Raises NotFoundError."""
    head = await services.store.head(tenant) if TENANT_ID.fullmatch(tenant) else None
    if head is None:
        raise NotFoundError("tenant", tenant[:80])
    return head


async def head_position(services: Services, tenant: str) -> int:
    return (await head_of(services, tenant)).position


def amount(text: str, param: str) -> int:
    """Nano-USD. Raises HttpError (400) that names the parameter."""
    try:
        return nano_usd(text)
    except ValueError as error:
        raise HttpError(400, "invalid_request", str(error), param=param) from error
