"""API keys: who may do what, until when.

Rights only ever shrink on the way down: a key has at most its user's role, and a key that was issued by another one at
most that one's scopes, models and life time.
"""

import hmac
from typing import Any

from msgspec.structs import replace

from actors.tenant.state import Key, Tenant
from events.errors import (
    AlreadyExistsError,
    ForbiddenError,
    InvalidCommandError,
    KeyRefusedError,
    NotFoundError,
    TenantSuspendedError,
)
from events.tenant import (
    ROLE_SCOPES,
    Authenticate,
    IssueKey,
    KeyEvent,
    KeyIssued,
    KeyRevoked,
    KeyRotated,
    RevokeKey,
    RotateKey,
    Scope,
    TenantEvent,
    check_name,
    key_subject,
    user_subject,
)

KEYS_ACTIVE_MAX = 10_000
ENDED_KEPT = 1_000  # keys that were revoked or have expired, the latest to be issued: the others' names are in the log
MODELS_MAX = 100
OVERLAP_US_MAX = 30 * 24 * 3600 * 1_000_000


def usable_key(state: Tenant, key_id: str, now_us: int) -> Key:
    """Raises KeyRefusedError where it is unknown, revoked or expired."""
    key = state.keys.get(key_id)
    if key is None or not _is_active(key, now_us):
        raise KeyRefusedError
    return key


def _is_active(key: Key, now_us: int) -> bool:
    return not key.revoked and not 0 < key.expires_us <= now_us


def scopes_of(state: Tenant, key: Key) -> frozenset[Scope]:
    """What the key may do now: its scopes, as far as its user's role still covers them."""
    if not key.user_id:
        return frozenset(key.scopes)
    user = state.users.get(key.user_id)
    return frozenset(key.scopes) & ROLE_SCOPES[user.role] if user else frozenset()


def authorize(state: Tenant, by_key: str, now_us: int) -> Key | None:
    """The key that asks for a change of keys or users; None: an operator does, who may.

    Raises:
        KeyRefusedError: The key is no longer good.
        ForbiddenError: It lacks the scope ``admin``.
    """
    if not by_key:
        return None
    if state.is_suspended:
        raise TenantSuspendedError
    key = usable_key(state, by_key, now_us)
    if "admin" not in scopes_of(state, key):
        raise ForbiddenError("this needs a key with the scope 'admin'")
    return key


def issue(state: Tenant, command: IssueKey, now_us: int) -> list[TenantEvent]:
    check_name("key", command.name)
    issuer = authorize(state, command.by_key, now_us)
    known = state.keys.get(command.key_id)
    if known is not None:
        if known.digest != command.digest:
            raise AlreadyExistsError("key", command.key_id)
        return []
    key = Key(
        command.name,
        command.digest,
        now_us,
        scopes=tuple(sorted(set(command.scopes))),
        models=command.models,
        expires_us=command.expires_us,
        user_id=command.user_id,
    )
    _check_new(state, key, now_us)
    if issuer is not None:
        _check_within(state, key, issuer, command.by_key)
    return [
        KeyIssued(
            command.key_id,
            key.name,
            key.digest,
            now_us,
            scopes=key.scopes,
            models=key.models,
            expires_us=key.expires_us,
            user_id=key.user_id,
        )
    ]


def _check_new(state: Tenant, key: Key, now_us: int) -> None:
    if not key.scopes:
        raise InvalidCommandError("a key needs at least one scope")
    if key.models is not None and not 0 < len(key.models) <= MODELS_MAX:
        raise InvalidCommandError(f"a key names 1 to {MODELS_MAX} models, or none to be allowed all of them")
    if key.expires_us and key.expires_us <= now_us:
        raise InvalidCommandError("a new key has to expire in the future")
    if sum(_is_active(other, now_us) for other in state.keys.values()) >= KEYS_ACTIVE_MAX:
        raise InvalidCommandError(f"a tenant has at most {KEYS_ACTIVE_MAX} active keys: revoke some")
    if not key.user_id:
        return
    user = state.users.get(key.user_id)
    if user is None:
        raise NotFoundError("user", key.user_id)
    if beyond := set(key.scopes) - ROLE_SCOPES[user.role]:
        raise ForbiddenError(f"the role {user.role!r} does not cover {', '.join(sorted(beyond))}")


def _check_within(state: Tenant, key: Key, issuer: Key, issuer_id: str) -> None:
    """Raises ForbiddenError unless the key can do nothing that its issuer can't."""
    if beyond := scopes_of(state, key) - scopes_of(state, issuer):
        raise ForbiddenError(f"the calling key has not the scope {', '.join(sorted(beyond))} itself")
    if issuer.models is not None and not (key.models and set(key.models) <= set(issuer.models)):
        raise ForbiddenError(f"the calling key may use {', '.join(issuer.models)} only: name some of these models")
    if issuer.expires_us and not 0 < key.expires_us <= issuer.expires_us:
        raise ForbiddenError("the calling key expires: a key that it issues has to expire no later")
    if issuer.user_id and not key.user_id:
        raise ForbiddenError("a user's key issues keys of users only: name one")
    own = key_subject(issuer_id)
    if own in state.accounts or own in state.limits:
        raise ForbiddenError("the calling key has a budget or limits of its own, which another key would escape")
    user = user_subject(issuer.user_id)
    if issuer.user_id and key.user_id != issuer.user_id and (user in state.accounts or user in state.limits):
        raise ForbiddenError("the calling key's user has a budget or limits, which another user's key would escape")


def rotate(state: Tenant, command: RotateKey, now_us: int) -> list[TenantEvent]:
    issuer = authorize(state, command.by_key, now_us)
    key = state.keys.get(command.key_id)
    if key is None:
        raise NotFoundError("key", command.key_id)
    if key.digest == command.digest:
        return []
    if not _is_active(key, now_us):
        raise InvalidCommandError(f"key {command.key_id!r} is revoked or expired: issue another one")
    if not 0 <= command.overlap_us <= OVERLAP_US_MAX:
        raise InvalidCommandError(f"the overlap is 0 to {OVERLAP_US_MAX // 86_400_000_000} days")
    if issuer is not None and command.by_key != command.key_id:
        _check_within(state, key, issuer, command.by_key)  # who rotates a key gets its new secret
    return [KeyRotated(command.key_id, command.digest, now_us + command.overlap_us, now_us)]


def revoke(state: Tenant, command: RevokeKey, now_us: int) -> list[TenantEvent]:
    authorize(state, command.by_key, now_us)
    if command.key_id not in state.keys:
        raise NotFoundError("key", command.key_id)
    return [] if state.keys[command.key_id].revoked else [KeyRevoked(command.key_id)]


def authenticate(state: Tenant, command: Authenticate, now_us: int) -> None:
    """Raises KeyRefusedError; TenantSuspendedError to the holder of a good key only."""
    key = state.keys.get(command.key_id)
    # compare in any case, so that an unknown id takes as long as a wrong secret
    is_current = hmac.compare_digest(key.digest if key else bytes(32), command.digest)
    is_old = hmac.compare_digest(key.old_digest if key else bytes(32), command.digest)
    if key is None or not _is_active(key, now_us) or not (is_current or (is_old and now_us < key.old_until_us)):
        raise KeyRefusedError
    if state.is_suspended:
        raise TenantSuspendedError


def identity(state: Tenant, command: Authenticate) -> dict[str, Any]:
    """What the holder of an authenticated key may do. ``valid_until_us`` (0: no end) is of the secret that was shown."""
    key = state.keys[command.key_id]
    ends = [key.expires_us] if key.expires_us else []
    if key.digest != command.digest:
        ends.append(key.old_until_us)
    return {
        "key_id": command.key_id,
        "name": key.name,
        "scopes": sorted(scopes_of(state, key)),
        "models": key.models,
        "valid_until_us": min(ends, default=0),
        "user_id": key.user_id,
    }


def evolve(state: Tenant, event: KeyEvent, version: int) -> Tenant:
    match event:
        case KeyIssued(key_id, name, digest, issued_us):
            key = Key(
                name,
                digest,
                issued_us,
                scopes=event.scopes,
                models=event.models,
                expires_us=event.expires_us,
                user_id=event.user_id,
            )
            return replace(state, version=version, keys=_with_few_ended({**state.keys, key_id: key}, key_id, issued_us))
        case KeyRotated(key_id, digest, old_until_us, rotated_us):
            before = state.keys[key_id]
            key = replace(
                before, digest=digest, old_digest=before.digest, old_until_us=old_until_us, rotated_us=rotated_us
            )
        case KeyRevoked(key_id):
            key = replace(state.keys[key_id], revoked=True)
            return replace(state, version=version, keys=_with_few_ended({**state.keys, key_id: key}, key_id, 0))
    return replace(state, version=version, keys={**state.keys, key_id: key})


def _with_few_ended(keys: dict[str, Key], latest: str, now_us: int) -> dict[str, Key]:
    """Whoever issues keys for ever that are revoked or expire must not fill the tenant's memory; ``latest`` stays in any case."""
    ended = [key_id for key_id, key in keys.items() if not _is_active(key, now_us) and key_id != latest]
    for key_id in ended[: max(0, len(ended) + 1 - ENDED_KEPT)]:
        del keys[key_id]
    return keys


def row(state: Tenant, key_id: str) -> dict[str, Any]:
    key = state.keys[key_id]
    return {
        "key_id": key_id,
        "name": key.name,
        "created_us": key.issued_us,
        "revoked": key.revoked,
        "scopes": list(key.scopes),
        "models": key.models,
        "expires_us": key.expires_us or None,
        "user_id": key.user_id or None,
        "rotated_us": key.rotated_us or None,
        "old_valid_until_us": key.old_until_us or None,
    }
