"""The two kinds of message that the platform is made of. Each family of them has a module of its own (``events.tenant``
…); ``events.catalog`` lists the families.
"""

import functools
import typing
from typing import Annotated, Any, ClassVar

import msgspec

TENANT_STREAM = "tenant"

# Marks a field of an event as personal data: it is sealed under the tenant's key when the event is written, and opened
# when it is read (events/sealing.py), with no further code: ``name: Personal``, ``body: Annotated[dict[str, str], PERSONAL]``.
PERSONAL = msgspec.Meta(extra={"personal": True})
Personal = Annotated[str, PERSONAL]


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """A wish that may be refused.

    Its answer is kept for 48 h for repeats, sealed under the tenant's key unless ``reply_is_personal`` says that there
    can be nothing personal in it: worth saying for what is asked many times a second.
    """

    reply_is_personal: ClassVar[bool] = True


class Query(Command, frozen=True):
    """Reads the tenant's own state; writes nothing."""


class Event(msgspec.Struct, frozen=True, tag_field="type"):
    """A fact. Its tag is its type and schema version; a new field has a default, a changed meaning is a new tag.

    Where it ``ends_stream``, nothing follows, unless a person has it begun again: nobody need remember how long it is.
    """

    ends_stream: ClassVar[bool] = False

    @property
    def stream(self) -> str:
        """The stream of the tenant's log that it belongs to: one per aggregate. Families of other aggregates override it."""
        return TENANT_STREAM


@functools.cache
def personal_fields(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields of an event that hold personal data, wherever in their type the mark stands: they are sealed whole.

    Raises:
        TypeError: Such a field is a struct itself, which nothing could stand in for once it is erased.
    """
    found = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if not _is_personal(hint):
            continue
        plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
            raise TypeError(f"{kind.__name__}.{name} is a struct with personal data: mark a dict or a list instead")
        found.append(name)
    return tuple(found)


def _is_personal(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return PERSONAL in hint.__metadata__ or _is_personal(typing.get_args(hint)[0])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return any(map(_is_personal, typing.get_type_hints(hint, include_extras=True).values()))
    return any(_is_personal(part) for part in typing.get_args(hint))
