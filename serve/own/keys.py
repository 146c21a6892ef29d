"""A tenant's admins look after its keys. A key never gives another one more than it has itself."""

from fastapi import Response

from serve.admin import keys
from serve.admin.keys import KeyList, KeyOut, KeyRow, NewKey, Rotation
from serve.admin.routes import IdempotencyKey, Svc, Who
from serve.own.routes import Admin, own_commands, own_reads


@own_commands.post("/keys", status_code=201)
async def issue_own_key(
    services: Svc, caller: Admin, body: NewKey, response: Response, idempotency_key: IdempotencyKey = None
) -> KeyOut:
    """Issue a key with at most the calling key's scopes, models and life time."""
    return await keys.issue(services, Who.caller(caller), body, response, idempotency_key)


@own_reads.get("/keys")
async def list_own_keys(services: Svc, caller: Admin) -> KeyList:
    return await keys.listing(services, Who.caller(caller))


@own_commands.post("/keys/{key_id}/rotate")
async def rotate_own_key(
    services: Svc,
    caller: Admin,
    key_id: str,
    body: Rotation,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> KeyOut:
    """Give a key a new secret: the calling key itself, or one that can do no more than it."""
    return await keys.rotate(services, Who.caller(caller), key_id, body, response, idempotency_key)


@own_commands.delete("/keys/{key_id}")
async def revoke_own_key(
    services: Svc, caller: Admin, key_id: str, response: Response, idempotency_key: IdempotencyKey = None
) -> KeyRow:
    return await keys.revoke(services, Who.caller(caller), key_id, response, idempotency_key)
