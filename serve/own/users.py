"""A tenant's admins look after its users."""

from fastapi import Response

from serve.admin import users
from serve.admin.routes import IdempotencyKey, Svc, Who
from serve.admin.users import NewUser, UserChange, UserGone, UserList, UserRow
from serve.own.routes import Admin, own_commands, own_reads


@own_commands.post("/users", status_code=201)
async def add_own_user(
    services: Svc, caller: Admin, body: NewUser, response: Response, idempotency_key: IdempotencyKey = None
) -> UserRow:
    return await users.add(services, Who.caller(caller), body, response, idempotency_key)


@own_reads.get("/users")
async def list_own_users(services: Svc, caller: Admin) -> UserList:
    return await users.listing(services, Who.caller(caller))


@own_commands.put("/users/{user_id}")
async def change_own_user(
    services: Svc,
    caller: Admin,
    user_id: str,
    body: UserChange,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> UserRow:
    return await users.change(services, Who.caller(caller), user_id, body, response, idempotency_key)


@own_commands.delete("/users/{user_id}")
async def remove_own_user(
    services: Svc, caller: Admin, user_id: str, response: Response, idempotency_key: IdempotencyKey = None
) -> UserGone:
    return await users.remove(services, Who.caller(caller), user_id, response, idempotency_key)
