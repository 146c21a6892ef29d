"""A tenant's inbox: queue commands that nobody waits for, see what became of them, look after those that failed for good."""

import contextlib
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Query, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel

from events.catalog import DomainCommand
from events.dead_letters import DeadLetter
from events.envelope import Failed, Ok, Refused, Reply, decode_envelope, decode_reply
from events.errors import NotFoundError
from events.inbox import COMMAND_ID, tell_subject
from events.sealing import open_bytes
from events.slices import TENANT_ID
from events.store import REPLY_SEAL
from serve.admin.routes import IdempotencyKey, Svc, command_id_for, keyed_writes, router
from serve.http_errors import HttpError
from serve.services import Services

COMMAND_HEADER = "x-tenantry-command"


class AcceptedOut(BaseModel):
    """``queued`` is the command's number in the queue; ``repeated``: it was accepted before and is not queued again."""

    command_id: str
    status: Literal["queued"] = "queued"
    queued: int
    repeated: bool


class OutcomeOut(BaseModel):
    """``done``: its events are in the log up to ``position``. ``refused``: the tenant said no, nothing happened. ``dead``: it
    failed for good and lies among the dead letters. ``queued``: none of these yet.
    """

    command_id: str
    status: Literal["queued", "done", "refused", "dead"]
    position: int | None = None
    result: Any = None
    code: str | None = None
    message: str | None = None


class DeadLetterRow(BaseModel):
    """Times in microseconds since 1970, UTC. ``release`` is the code that buried it."""

    id: str
    tenant: str
    command_id: str
    cause: Literal["undecodable", "defect", "unanswered", "stale", "reused"]
    message: str
    attempts: int
    told_us: int
    died_us: int
    release: str


class DeadLetterOut(DeadLetterRow):
    """``command`` is what was told, as far as it can be decoded; else ``data_hex`` are its bytes."""

    headers: dict[str, str]
    actor: str | None = None
    command: Any = None
    data_hex: str | None = None


class DeadLetterPage(BaseModel):
    data: list[DeadLetterRow]
    next_after: int | None = None


@router.post("/tenants/{tenant}/commands", status_code=202)
async def tell(
    services: Svc, tenant: str, request: HttpRequest, response: Response, idempotency_key: IdempotencyKey = None
) -> AcceptedOut:
    """Queue a command: `{"type": "budget.set", "limit_nano_usd": 25000000000, "window": "month"}`.

    202 once it is on disk; it is decided behind all that was queued for the tenant before, also after a restart of
    everything. `Location` names where its outcome will be. 429 when the tenant's queue is full. A repeat with the same
    Idempotency-Key happens once.
    """
    command = _parse(await request.body())
    await _known(services, tenant)
    command_id = command_id_for(services, tenant, idempotency_key)
    accepted = await services.teller.tell(tenant, command, actor="admin", command_id=command_id)
    response.headers[COMMAND_HEADER] = accepted.command_id
    response.headers["location"] = (
        f"/admin/v1/tenants/{tenant}/commands/{accepted.command_id}?queued={accepted.sequence}"
    )
    return AcceptedOut(command_id=accepted.command_id, queued=accepted.sequence, repeated=accepted.repeated)


@router.get("/tenants/{tenant}/commands/{command_id}", response_model_exclude_none=True)
async def outcome(
    services: Svc,
    tenant: str,
    command_id: str,
    queued: Annotated[int | None, Query(ge=1, description="Its number in the queue, as it was answered")] = None,
) -> OutcomeOut:
    """What became of a command, for 48 h. Also of one that was asked and got no answer in time (504)."""
    await _known(services, tenant)
    if not COMMAND_ID.fullmatch(command_id):
        raise NotFoundError("command", command_id[:128])
    if found := await _outcome(services, tenant, command_id):
        return found
    if queued is not None and await services.inbox.is_queued(queued, tell_subject(tenant)):
        return OutcomeOut(command_id=command_id, status="queued")
    # it may have left the queue between the two looks
    if found := await _outcome(services, tenant, command_id):
        return found
    raise HttpError(
        404,
        "not_found",
        f"no outcome of command {command_id!r} is known: it never came here, is older than 48 h, or still waits "
        "(then `queued=N`, from the Location it was answered with, says so)",
    )


async def _outcome(services: Services, tenant: str, command_id: str) -> OutcomeOut | None:
    stored = await services.store.replies(tenant, [command_id])
    if command_id in stored:
        cipher = await services.keys.cipher(tenant)
        reply = open_bytes(cipher, REPLY_SEAL, stored[command_id].reply)
        # None: the tenant was erased, and with it what it answered
        return None if reply is None else _outcome_out(command_id, decode_reply(reply))
    found = (await services.outcomes.find(tenant, [command_id])).get(command_id)
    return None if found is None else _outcome_out(command_id, found)


def _outcome_out(command_id: str, reply: Reply) -> OutcomeOut:
    match reply:
        case Ok(result, position):
            return OutcomeOut(command_id=command_id, status="done", position=position, result=result)
        case Refused(code, message):
            return OutcomeOut(command_id=command_id, status="refused", code=code, message=message)
        case Failed(code, message):
            return OutcomeOut(command_id=command_id, status="dead", code=code, message=message)


@router.get("/dead-letters")
async def list_dead_letters(
    services: Svc,
    tenant: str | None = None,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> DeadLetterPage:
    """Commands that failed for good, of one tenant or of all, in the order of their deaths. They are kept for 30 days."""
    if tenant is not None:
        await _known(services, tenant)
    page = await services.dead_letters.page(tenant, after, limit)
    rows = [DeadLetterRow(**_row(letter)) for _, letter in page]
    return DeadLetterPage(data=rows, next_after=page[-1][0] if len(page) == limit else None)


@router.get("/tenants/{tenant}/dead-letters/{letter_id}")
async def show_dead_letter(services: Svc, tenant: str, letter_id: str) -> DeadLetterOut:
    """All that is known of a dead letter, the command itself included."""
    return _letter_out(await services.dead_letters.find(await _known(services, tenant), _letter_id(letter_id)))


@keyed_writes.post("/tenants/{tenant}/dead-letters/{letter_id}/replay", status_code=202)
async def replay_dead_letter(services: Svc, tenant: str, letter_id: str) -> DeadLetterRow:
    """Queue the command again, under its own command id: what it did once it does not do twice."""
    letter = await services.dead_letters.replay(await _known(services, tenant), _letter_id(letter_id))
    return DeadLetterRow(**_row(letter))


@keyed_writes.delete("/tenants/{tenant}/dead-letters/{letter_id}")
async def discard_dead_letter(
    services: Svc,
    tenant: str,
    letter_id: str,
    confirm: Annotated[str, Query(description="The letter's id once more, because nothing brings it back")] = "",
) -> DeadLetterRow:
    """Drop a dead letter for good."""
    if confirm != letter_id:
        message = f"a discarded command is gone: say confirm={letter_id[:128]} to discard this one"
        raise HttpError(400, "invalid_request", message, param="confirm")
    letter = await services.dead_letters.discard(await _known(services, tenant), _letter_id(letter_id))
    return DeadLetterRow(**_row(letter))


async def _known(services: Services, tenant: str) -> str:
    if not TENANT_ID.fullmatch(tenant) or not await services.tenants.exists(tenant):
        raise NotFoundError("tenant", tenant[:80])
    return tenant


def _letter_id(text: str) -> str:
    if not COMMAND_ID.fullmatch(text):
        raise NotFoundError("dead letter", text[:128])
    return text


def _parse(body: bytes) -> DomainCommand:
    try:
        command: DomainCommand = msgspec.json.decode(body, type=DomainCommand)
        return command
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"not a command: {error}; it is an object with its `type` and its fields"
        raise HttpError(400, "invalid_request", message) from error


def _row(letter: DeadLetter) -> dict[str, Any]:
    return {name: getattr(letter, name) for name in DeadLetterRow.model_fields}


def _letter_out(letter: DeadLetter) -> DeadLetterOut:
    shown = DeadLetterOut(**_row(letter), headers=letter.headers)
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        envelope = decode_envelope(letter.data)
        command = msgspec.to_builtins(msgspec.msgpack.decode(envelope.body))
        return shown.model_copy(update={"actor": envelope.actor, "command": command})
    return shown.model_copy(update={"data_hex": letter.data.hex()})
