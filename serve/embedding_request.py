"""An embedding request: what has to be right before money is reserved for it. Pure."""

from typing import Annotated, Literal

import msgspec

from actors.tools.upstream import EMBEDDINGS
from serve.chat_request import Call, decoded, find_model
from serve.http_errors import HttpError
from serve.settings import Model

_INPUTS_MAX = 2_048
FIELDS = frozenset(("model", "input", "dimensions", "encoding_format", "user"))
_INPUT_OVERHEAD_TOKENS = 8  # per text: what its server may put round it

Text = Annotated[str, msgspec.Meta(min_length=1)]
Tokens = Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(min_length=1)]
Inputs = Annotated[list[str | int | list[int]], msgspec.Meta(min_length=1)]


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """``input``: a text, its tokens, or a list of either."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    input: Text | Inputs
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


def parse_embeddings(body: bytes, models: dict[str, Model]) -> Call:
    """Raises HttpError with what is wrong and where. There are no fallbacks: another model's vectors mean something else."""
    request, fields = decoded(body, EmbeddingRequest)
    for name in fields:
        if name not in FIELDS:
            raise HttpError(400, "invalid_request", f"unknown field {name!r}", param=name)
    return Call(
        model=find_model(request.model, models),
        path=EMBEDDINGS,
        body=fields,
        is_stream=False,
        wants_usage=False,
        input_bytes=len(body),
        # a token stands for at least one byte of the body, be it text or a number
        input_tokens_max=len(body) + _INPUT_OVERHEAD_TOKENS * _count(request.input),
        output_tokens_max=0,
    )


def _count(given: str | list[str | int | list[int]]) -> int:
    """How many texts there are. Raises HttpError where they are of several kinds, or too many."""
    if isinstance(given, str) or all(isinstance(one, int) for one in given):
        return 1
    kind = type(given[0])
    if kind is int or not all(type(one) is kind and one for one in given):
        message = "input is a text, its tokens, or a list of either; none of them empty"
        raise HttpError(400, "invalid_request", message, param="input")
    if len(given) > _INPUTS_MAX:
        raise HttpError(400, "invalid_request", f"at most {_INPUTS_MAX} inputs, got {len(given)}", param="input")
    return len(given)
