"""A tenant's API keys: issue, list, revoke."""

from typing import Annotated

from fastapi import Response
from pydantic import BaseModel, Field

from events.tenant import IssueKey, ListKeys, RevokeKey
from serve.admin.routes import IdempotencyKey, Svc, ask, command_id_for, commands, router, stamp
from serve.auth import push_revocation
from serve.keys import digest_of, make_key


class NewKey(BaseModel, extra="forbid"):
    name: Annotated[str, Field(min_length=1, max_length=200)] = "default"


class KeyOut(BaseModel):
    """``key`` is shown this once; only its keyed hash is kept."""

    key_id: str
    key: str
    name: str
    position: int


class KeyRow(BaseModel):
    key_id: str
    name: str
    created_us: int
    revoked: bool


class KeyList(BaseModel):
    data: list[KeyRow]


@commands.post("/tenants/{tenant}/keys", status_code=201)
async def issue_key(
    services: Svc, tenant: str, body: NewKey, response: Response, idempotency_key: IdempotencyKey = None
) -> KeyOut:
    """Issue an API key. It is shown in this answer only; a repeat with the same Idempotency-Key shows it again."""
    command_id = command_id_for(services, tenant, idempotency_key)
    key = make_key(services.settings.pepper, tenant, idempotency_key)
    command = IssueKey(key.key_id, body.name, digest_of(services.settings.pepper, key))
    ok = await ask(services, tenant, command, command_id)
    stamp(response, ok)
    return KeyOut(key_id=key.key_id, key=key.text, name=body.name, position=ok.position)


@router.get("/tenants/{tenant}/keys")
async def list_keys(services: Svc, tenant: str) -> KeyList:
    ok = await ask(services, tenant, ListKeys())
    return KeyList(data=[KeyRow(**row) for row in ok.result["keys"]])


@commands.delete("/tenants/{tenant}/keys/{key_id}")
async def revoke_key(services: Svc, tenant: str, key_id: str, response: Response) -> KeyRow:
    """Revoke a key, at once and for good. Calls that run already are finished."""
    ok = await ask(services, tenant, RevokeKey(key_id))
    push_revocation(services.bus, tenant, key_id)
    stamp(response, ok)
    listed = await ask(services, tenant, ListKeys())
    return next(KeyRow(**row) for row in listed.result["keys"] if row["key_id"] == key_id)
