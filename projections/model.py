"""What a projection is: a pure function from an event to writes, and where the writes go.

A read model is a set of Valkey hashes in the tenant's slice. Writes only add to or set single fields, so ``apply`` needs
no read, and the runner can apply many events in one function call.
"""

from typing import Protocol

import msgspec

from events.catalog import DomainEvent
from events.codec import Record
from events.slices import slice_of, slice_tag


class Add(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    """Add a whole number to a field that counts (0 where it is not there yet)."""

    field: str
    amount: int


class Put(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    """``is_personal``: the value is kept sealed under the tenant's key, and goes with it."""

    field: str
    value: bytes
    is_personal: bool = False


Write = Add | Put


class Projection(Protocol):
    name: str
    generation: int  # part of every key; a rebuild writes a new one beside the live one

    def apply(self, tenant: str, record: Record, event: DomainEvent) -> list[Write]:
        """What the event changes in the tenant's read model. Pure."""
        ...


def model_key(projection: str, generation: int, tenant: str) -> str:
    return f"{slice_tag(slice_of(tenant))}:{projection}:g{generation}:{tenant}"


def checkpoint_key(projection: str, generation: int, slice_number: int) -> str:
    """One hash per slice: tenant -> position up to which its events are in the read model."""
    return f"{slice_tag(slice_number)}:{projection}:g{generation}:checkpoints"
