"""A tenant's API keys: issue, list, rotate, revoke. For operators, and under ``/v1`` for the tenant's own admins."""

from typing import Annotated

from fastapi import Response
from pydantic import BaseModel, Field
from pydantic.config import JsonDict

from events.clock import TIME_US_MAX
from events.envelope import Ok
from events.tenant import DEFAULT_SCOPES, IssueKey, ListKeys, RevokeKey, RotateKey, Scope
from projections.key_use import KeyUseProjection, read_last_used
from serve.admin.routes import IdempotencyKey, Svc, Who, ask, commands, router, stamp
from serve.auth import push_revocation
from serve.keys import digest_of, make_key, make_next_key
from serve.services import Services

_DAY_S = 24 * 3600
Scopes = Annotated[
    tuple[Scope, ...],
    Field(
        min_length=1,
        max_length=4,
        description="inference: call models; runs: start and steer runs; read: models, usage, spend, events; "
        "admin: manage the tenant's own users and keys",
    ),
]


_NEWKEY_EXAMPLES: JsonDict = {"examples": [{"name": "search", "scopes": ["inference"], "models": ["small"]}]}


class NewKey(BaseModel, extra="forbid", json_schema_extra=_NEWKEY_EXAMPLES):
    name: Annotated[str, Field(min_length=1, max_length=200)] = "default"
    scopes: Scopes = DEFAULT_SCOPES
    models: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] | None,
        Field(min_length=1, max_length=100, description="The only models it may call; all where left out"),
    ] = None
    expires_us: Annotated[
        int | None, Field(gt=0, le=TIME_US_MAX, description="Microseconds since 1970, UTC; never where left out")
    ] = None
    user_id: Annotated[str | None, Field(max_length=64, description="Whose key it is; its role bounds the scopes")] = (
        None
    )


class Rotation(BaseModel, extra="forbid"):
    overlap_s: Annotated[
        int, Field(ge=0, le=30 * _DAY_S, description="How long the old secret stays good beside the new one")
    ] = _DAY_S


class KeyRow(BaseModel):
    """``last_used_us`` is when it last started a call, as of some milliseconds ago; reads don't count."""

    key_id: str
    name: str
    created_us: int
    revoked: bool
    scopes: list[Scope]
    models: list[str] | None
    expires_us: int | None
    user_id: str | None
    rotated_us: int | None
    old_valid_until_us: int | None
    last_used_us: int | None = None


class KeyOut(KeyRow):
    """``key`` is shown this once; only its keyed hash is kept."""

    key: str
    position: int


class KeyList(BaseModel):
    data: list[KeyRow]


async def issue(services: Services, who: Who, body: NewKey, response: Response, idempotency_key: str | None) -> KeyOut:
    seed = idempotency_key and f"{who.by_key}\x00{idempotency_key}" if who.by_key else idempotency_key
    key = make_key(services.settings.pepper, who.tenant, seed)
    command = IssueKey(
        key.key_id,
        body.name,
        digest_of(services.settings.pepper, key),
        scopes=body.scopes,
        models=body.models,
        expires_us=body.expires_us or 0,
        user_id=body.user_id or "",
        by_key=who.by_key,
    )
    ok = await ask(services, who, command, who.command_id(services, idempotency_key))
    stamp(response, ok)
    return KeyOut(key=key.text, position=ok.position, **ok.result)


async def listing(services: Services, who: Who) -> KeyList:
    ok = await ask(services, who, ListKeys(by_key=who.by_key))
    used = read_last_used(await services.models.fields(KeyUseProjection(), who.tenant))
    return KeyList(data=[KeyRow(last_used_us=used.get(row["key_id"]), **row) for row in ok.result["keys"]])


async def rotate(
    services: Services, who: Who, key_id: str, body: Rotation, response: Response, idempotency_key: str | None
) -> KeyOut:
    seed = idempotency_key and f"{who.by_key}\x00{idempotency_key}"
    key = make_next_key(services.settings.pepper, who.tenant, key_id, seed)
    digest = digest_of(services.settings.pepper, key)
    command = RotateKey(key_id, digest, body.overlap_s * 1_000_000, by_key=who.by_key)
    ok = await ask(services, who, command, who.command_id(services, idempotency_key))
    push_revocation(services.bus, who.tenant, key_id)
    stamp(response, ok)
    return KeyOut(key=key.text, position=ok.position, **ok.result)


async def revoke(services: Services, who: Who, key_id: str, response: Response, idempotency_key: str | None) -> KeyRow:
    ok: Ok = await ask(services, who, RevokeKey(key_id, by_key=who.by_key), who.command_id(services, idempotency_key))
    push_revocation(services.bus, who.tenant, key_id)
    stamp(response, ok)
    return KeyRow(**ok.result)


@commands.post("/tenants/{tenant}/keys", status_code=201)
async def issue_key(
    services: Svc, tenant: str, body: NewKey, response: Response, idempotency_key: IdempotencyKey = None
) -> KeyOut:
    """Issue an API key. It is shown in this answer only; a repeat with the same Idempotency-Key shows it again."""
    return await issue(services, Who(tenant), body, response, idempotency_key)


@router.get("/tenants/{tenant}/keys")
async def list_keys(services: Svc, tenant: str) -> KeyList:
    return await listing(services, Who(tenant))


@commands.post("/tenants/{tenant}/keys/{key_id}/rotate")
async def rotate_key(
    services: Svc, tenant: str, key_id: str, body: Rotation, response: Response, idempotency_key: IdempotencyKey = None
) -> KeyOut:
    """Give the key a new secret, shown in this answer only. The old one stays good for the overlap, one before that ends."""
    return await rotate(services, Who(tenant), key_id, body, response, idempotency_key)


@commands.delete("/tenants/{tenant}/keys/{key_id}")
async def revoke_key(
    services: Svc, tenant: str, key_id: str, response: Response, idempotency_key: IdempotencyKey = None
) -> KeyRow:
    """Revoke a key, at once and for good. Calls that run already are finished."""
    return await revoke(services, Who(tenant), key_id, response, idempotency_key)
