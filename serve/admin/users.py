"""A tenant's users. For operators, and under ``/v1`` for the tenant's own admins."""

from typing import Annotated

from fastapi import Response
from pydantic import BaseModel, Field

from events.tenant import AddUser, ChangeUser, ListUsers, RemoveUser, Role
from serve.admin.routes import IdempotencyKey, Svc, Who, ask, commands, router, stamp
from serve.auth import push_revocation
from serve.services import Services

UserName = Annotated[str, Field(min_length=1, max_length=200)]


class NewUser(BaseModel, extra="forbid"):
    user_id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", examples=["ada"])]
    name: UserName
    role: Annotated[
        Role, Field(description="admin: all of the tenant; user: calls, runs and reads; viewer: reads only")
    ] = "user"


class UserChange(BaseModel, extra="forbid"):
    """What is left out stays."""

    name: UserName | None = None
    role: Role | None = None


class UserRow(BaseModel):
    user_id: str
    name: str
    role: Role
    created_us: int


class UserList(BaseModel):
    data: list[UserRow]


class UserGone(BaseModel):
    user_id: str


async def add(services: Services, who: Who, body: NewUser, response: Response, idempotency_key: str | None) -> UserRow:
    command = AddUser(body.user_id, body.name, body.role, by_key=who.by_key)
    ok = await ask(services, who, command, who.command_id(services, idempotency_key))
    stamp(response, ok)
    return UserRow(**ok.result)


async def listing(services: Services, who: Who) -> UserList:
    ok = await ask(services, who, ListUsers(by_key=who.by_key))
    return UserList(data=[UserRow(**row) for row in ok.result["users"]])


async def change(
    services: Services, who: Who, user_id: str, body: UserChange, response: Response, idempotency_key: str | None
) -> UserRow:
    command = ChangeUser(user_id, body.name, body.role, by_key=who.by_key)
    ok = await ask(services, who, command, who.command_id(services, idempotency_key))
    push_revocation(services.bus, who.tenant)
    stamp(response, ok)
    return UserRow(**ok.result)


async def remove(
    services: Services, who: Who, user_id: str, response: Response, idempotency_key: str | None
) -> UserGone:
    ok = await ask(services, who, RemoveUser(user_id, by_key=who.by_key), who.command_id(services, idempotency_key))
    push_revocation(services.bus, who.tenant)
    stamp(response, ok)
    return UserGone(**ok.result)


@commands.post("/tenants/{tenant}/users", status_code=201)
async def add_user(
    services: Svc, tenant: str, body: NewUser, response: Response, idempotency_key: IdempotencyKey = None
) -> UserRow:
    """Add a user. Keys are issued to users; the role bounds what they can do."""
    return await add(services, Who(tenant), body, response, idempotency_key)


@router.get("/tenants/{tenant}/users")
async def list_users(services: Svc, tenant: str) -> UserList:
    return await listing(services, Who(tenant))


@commands.put("/tenants/{tenant}/users/{user_id}")
async def change_user(
    services: Svc,
    tenant: str,
    user_id: str,
    body: UserChange,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> UserRow:
    """Change a user's name or role. A smaller role takes effect on the user's keys at once."""
    return await change(services, Who(tenant), user_id, body, response, idempotency_key)


@commands.delete("/tenants/{tenant}/users/{user_id}")
async def remove_user(
    services: Svc, tenant: str, user_id: str, response: Response, idempotency_key: IdempotencyKey = None
) -> UserGone:
    """Remove a user and revoke all the user's keys."""
    return await remove(services, Who(tenant), user_id, response, idempotency_key)
