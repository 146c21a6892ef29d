"""The two kinds of message that the platform is made of. Each family of them has a module of its own (``events.tenant``
…); ``events.catalog`` lists the families.
"""

import msgspec

TENANT_STREAM = "tenant"


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """A wish that may be refused."""


class Query(Command, frozen=True):
    """Reads the tenant's own state; writes nothing."""


class Event(msgspec.Struct, frozen=True, tag_field="type"):
    """A fact. Its tag is its type and schema version; a new field has a default, a changed meaning is a new tag."""

    @property
    def stream(self) -> str:
        """The stream of the tenant's log that it belongs to: one per aggregate. Families of other aggregates override it."""
        return TENANT_STREAM
