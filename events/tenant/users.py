"""Users of a tenant. A role bounds what the user's keys can do; ``by_key`` as for keys."""

from events.messages import Command, Event, Personal, Query
from events.tenant.words import Role


class AddUser(Command, frozen=True, tag="user.add"):
    user_id: str
    name: str
    role: Role
    by_key: str = ""


class ChangeUser(Command, frozen=True, tag="user.change"):
    """Change name, role or both; None leaves it. A smaller role takes effect on the user's keys at once."""

    user_id: str
    name: str | None = None
    role: Role | None = None
    by_key: str = ""


class RemoveUser(Command, frozen=True, tag="user.remove"):
    """Remove the user and revoke all the user's keys."""

    user_id: str
    by_key: str = ""


class ListUsers(Query, frozen=True, tag="user.list"):
    by_key: str = ""


class UserAdded(Event, frozen=True, tag="user.added.v1"):
    user_id: str
    name: Personal
    role: Role
    added_us: int


class UserChanged(Event, frozen=True, tag="user.changed.v1"):
    user_id: str
    name: Personal
    role: Role


class UserRemoved(Event, frozen=True, tag="user.removed.v1"):
    user_id: str


UserCommand = AddUser | ChangeUser | RemoveUser | ListUsers
UserEvent = UserAdded | UserChanged | UserRemoved
