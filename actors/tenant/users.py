"""Users and their roles. A smaller role, or being removed, acts on the user's keys at once."""

from typing import Any

from msgspec.structs import replace

from actors.tenant.keys import authorize
from actors.tenant.state import Tenant, User
from events.errors import AlreadyExistsError, InvalidCommandError, NotFoundError
from events.tenant import (
    AddUser,
    ChangeUser,
    KeyRevoked,
    RemoveUser,
    TenantEvent,
    UserAdded,
    UserChanged,
    UserEvent,
    UserRemoved,
    check_name,
    check_user_id,
)

USERS_MAX = 10_000


def add(state: Tenant, command: AddUser, now_us: int) -> list[TenantEvent]:
    authorize(state, command.by_key, now_us)
    check_user_id(command.user_id)
    check_name("user", command.name)
    if command.user_id in state.users:
        raise AlreadyExistsError("user", command.user_id)
    if len(state.users) >= USERS_MAX:
        raise InvalidCommandError(f"a tenant has at most {USERS_MAX} users")
    return [UserAdded(command.user_id, command.name, command.role, now_us)]


def change(state: Tenant, command: ChangeUser, now_us: int) -> list[TenantEvent]:
    authorize(state, command.by_key, now_us)
    user = _known(state, command.user_id)
    name = user.name if command.name is None else command.name
    check_name("user", name)
    return [UserChanged(command.user_id, name, command.role or user.role)]


def remove(state: Tenant, command: RemoveUser, now_us: int) -> list[TenantEvent]:
    authorize(state, command.by_key, now_us)
    _known(state, command.user_id)
    revoked: list[TenantEvent] = [
        KeyRevoked(key_id) for key_id, key in state.keys.items() if key.user_id == command.user_id and not key.revoked
    ]
    return [*revoked, UserRemoved(command.user_id)]


def _known(state: Tenant, user_id: str) -> User:
    user = state.users.get(user_id)
    if user is None:
        raise NotFoundError("user", user_id[:80])
    return user


def evolve(state: Tenant, event: UserEvent, version: int) -> Tenant:
    users = dict(state.users)
    match event:
        case UserAdded(user_id, name, role, added_us):
            users[user_id] = User(name, role, added_us)
        case UserChanged(user_id, name, role):
            users[user_id] = replace(users[user_id], name=name, role=role)
        case UserRemoved(user_id):
            del users[user_id]
    return replace(state, version=version, users=users)


def row(state: Tenant, user_id: str) -> dict[str, Any]:
    user = state.users[user_id]
    return {"user_id": user_id, "name": user.name, "role": user.role, "created_us": user.added_us}
