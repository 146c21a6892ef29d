"""What a projection is: a pure function from an event to writes, and where the writes go.

A read model is a hash of the tenant's in its slice, and indexes beside it where it is listed in an order. Writes only add to
or set single fields, and put members into indexes or take them out, so ``apply`` needs no read, and the runner can apply
many events in one function call.
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


class Rank(msgspec.Struct, frozen=True, array_like=True, tag="rank"):
    """Put a member into an ordered index, under a score (a whole number below 2^53), or, with ``like``, under the one it has
    in that other index (where it has none, nothing happens).
    """

    index: str
    member: str
    score: int = 0
    like: str = ""


class Unrank(msgspec.Struct, frozen=True, array_like=True, tag="unrank"):
    """Take a member out of an index; harmless where it is not in it."""

    index: str
    member: str


Write = Add | Put | Rank | Unrank


class Projection(Protocol):
    name: str
    generation: int  # part of every key; a rebuild writes a new one beside the live one

    def apply(self, tenant: str, record: Record, event: DomainEvent) -> list[Write]:
        """What the event changes in the tenant's read model. Pure."""
        ...


def model_key(projection: str, generation: int, tenant: str) -> str:
    return f"{slice_tag(slice_of(tenant))}:{projection}:g{generation}:{tenant}"


def index_key(projection: str, generation: int, tenant: str, index: str) -> str:
    return f"{model_key(projection, generation, tenant)}:{index}"


def checkpoint_key(projection: str, generation: int, slice_number: int) -> str:
    """One hash per slice: tenant -> position up to which its events are in the read model."""
    return f"{slice_tag(slice_number)}:{projection}:g{generation}:checkpoints"
