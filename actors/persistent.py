"""Maps that a new state can share with the old one: setting one key costs about a microsecond however many there are.

A dict would be copied at every event, which with a thousand open calls costs more than all the rest of a decision. The
structure is a hash array mapped trie, from the library ``immutables``; here is how snapshots write and read it.
"""

import typing
from typing import Any

import msgspec
from immutables import Map

__all__ = ["EMPTY", "Map", "decode_hook", "encode_hook"]

EMPTY: Map[Any, Any] = Map()


def encode_hook(value: Any) -> Any:
    """For msgspec encoders: a map is written as one, in the order of its keys, so that equal states are equal bytes."""
    if isinstance(value, Map):
        return dict(sorted(value.items()))
    raise TypeError(f"a snapshot can't hold {type(value).__name__}")


def decode_hook(kind: type, value: Any) -> Any:
    """For msgspec decoders."""
    if typing.get_origin(kind) is Map:
        return Map(msgspec.convert(value, dict[typing.get_args(kind)]))  # type: ignore[misc]
    raise TypeError(f"a snapshot can't hold {kind}")
