"""A chat completion request: what has to be right before money is reserved for it. Pure."""

import hashlib
import re
from typing import Annotated, Any, TypeVar

import msgspec

from actors.tools.upstream import CHAT
from events.tenant import Target, TokenPrice
from serve.http_errors import HttpError
from serve.settings import Model

_DEPTH_MAX = 64
# possessive, and every quote starts a match that succeeds: linear in the body, whatever is in it
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_TAG_CHARS_MAX = 128
_INPUT_OVERHEAD_TOKENS = 16  # per message: role and separators of the chat template


# All of OpenAI's chat completion fields that go to the upstream as they came. What is not here is refused by name: a
# server-specific field (llama.cpp's n_predict, say) could make a call cost more than was reserved for it.
FIELDS = frozenset(
    [
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "temperature",
        "top_p",
        "stop",
        "seed",
        "logprobs",
        "top_logprobs",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "verbosity",
        "metadata",
        "store",
        "modalities",
        "service_tier",
    ]
)
_REFUSED = {
    "audio": "audio costs tokens that can't be bounded before the call",
    "web_search_options": "searches are billed beside tokens",
    "prediction": "what of it is rejected is billed as output, beyond max_tokens",
    "moderation": "it calls another model, whose price is not this one's",
}
_STANDARD_TIERS = (None, "auto", "default")
_TOOL_TYPES = (None, "function", "custom")  # which the client carries out itself


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


MetadataName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
MetadataValue = Annotated[str, msgspec.Meta(max_length=512)]
Metadata = Annotated[
    dict[MetadataName, MetadataValue],
    msgspec.Meta(
        max_length=16, description="Spend is reported by these, too; the first 128 characters of a value count"
    ),
]


class ChatRequest(msgspec.Struct, frozen=True):
    """The fields that decide about cost and form."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=4096)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    metadata: Metadata | None = None


class Call(msgspec.Struct, frozen=True):
    """A request that passed: what an upstream is sent, and the most it can use. ``fallbacks``: the other models that can do
    what is asked. ``limit``: the field that bounds the answer where the client gave no bound: then each model has its own.
    ``repeat_key``: the same for a repeat of the very same call by the same client; "" where it sent no Idempotency-Key.
    """

    model: Model
    path: str
    body: dict[str, Any]
    is_stream: bool
    wants_usage: bool
    input_bytes: int
    input_tokens_max: int
    output_tokens_max: int
    tags: dict[str, str] = {}
    fallbacks: tuple[Model, ...] = ()
    limit: str = ""
    repeat_key: str = ""

    def body_for(self, model: Model) -> dict[str, Any]:
        """What an upstream of ``model`` is sent, but for the model's name there."""
        if not self.limit or model is self.model:
            return self.body
        return {**self.body, self.limit: model.max_output_tokens}

    def key_at(self, upstream: str) -> str:
        """The Idempotency-Key for one upstream, which another one's is not: what they are sent differs."""
        return hashlib.sha256(f"{self.repeat_key}/{upstream}".encode()).hexdigest() if self.repeat_key else ""

    def target(self, model: Model, price: TokenPrice) -> Target:
        """The most that the call can cost at one of its models."""
        output = self.output_tokens_max
        if self.limit:
            output = output // self.model.max_output_tokens * model.max_output_tokens
        return Target(model.name, self.input_tokens_max, output, price)


def check_depth(body: bytes) -> None:
    """The decoder recurses, so a body that nests deeper than any real one is refused before it gets there.

    Whole-body replacements instead of a loop over bytes: 4 MiB of brackets take milliseconds, not half a second.
    """
    if body.count(b"[") + body.count(b"{") <= _DEPTH_MAX:
        return
    brackets = _STRINGS.sub(b"", body).translate(None, delete=_NO_BRACKETS)
    for _ in range(_DEPTH_MAX):
        outer = brackets.replace(b"[]", b"").replace(b"{}", b"")  # takes the innermost level away
        if len(outer) == len(brackets):
            break
        brackets = outer
    if brackets:
        message = f"the body nests deeper than {_DEPTH_MAX} levels, or its brackets don't match"
        raise HttpError(400, "invalid_request", message)


def parse_chat(body: bytes, models: dict[str, Model]) -> Call:
    """Raises HttpError with what is wrong and where."""
    request, fields = decoded(body, ChatRequest)
    return _call(request, fields, models, find_model(request.model, models), len(body))


Request = TypeVar("Request", bound=msgspec.Struct)


def decoded(body: bytes, kind: type[Request]) -> tuple[Request, dict[str, Any]]:
    """The body as ``kind``, and all of its fields. Raises HttpError (400)."""
    check_depth(body)
    try:
        request = msgspec.json.decode(body, type=kind)
        fields: dict[str, Any] = msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        _, _, path = str(error).partition(" - at `$.")
        raise HttpError(
            400, "invalid_request", f"malformed request: {error}", param=path.rstrip("`") or None
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, "invalid_request", f"the body is not JSON: {error}") from error
    return request, fields


def find_model(name: str, models: dict[str, Model]) -> Model:
    """Raises HttpError (404) with those there are."""
    model = models.get(name)
    if model is None:
        known = ", ".join(sorted(models)) or "none yet: give `tenantry up` a models file"
        message = f"the model {name!r} does not exist; there are: {known}"
        raise HttpError(404, "model_not_found", message, param="model")
    return model


def _refuse_what_has_no_bound(fields: dict[str, Any]) -> None:
    """Raises HttpError for whatever could cost more than the request's own size and limits say."""
    for name, value in fields.items():
        if name in _REFUSED and value is not None:
            raise HttpError(400, "invalid_request", f"{name} is not supported: {_REFUSED[name]}", param=name)
        if name not in FIELDS and name not in _REFUSED:
            raise HttpError(400, "invalid_request", f"unknown field {name!r}", param=name)
    if fields.get("service_tier") not in _STANDARD_TIERS:
        message = "service_tier is auto or default: other tiers have prices of their own"
        raise HttpError(400, "invalid_request", message, param="service_tier")
    if (fields.get("modalities") or ["text"]) != ["text"]:
        raise HttpError(400, "invalid_request", "only text can be asked for", param="modalities")
    tools = fields.get("tools")
    for number, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, dict) and tool.get("type") not in _TOOL_TYPES:
            message = f"tools[{number}] is of type {tool['type']!r}: what a server runs is billed beside tokens, use functions"
            raise HttpError(400, "invalid_request", message, param=f"tools[{number}].type")
    for number, message in enumerate(fields["messages"]):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal"):
                where = f"messages[{number}].content"
                raise HttpError(
                    400, "invalid_request", f"{where}: only text parts are supported, not {kind!r}", param=where
                )


def _call(
    request: ChatRequest, fields: dict[str, Any], models: dict[str, Model], model: Model, body_bytes: int
) -> Call:
    _refuse_what_has_no_bound(fields)
    limit = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if wanted is not None and wanted > model.max_output_tokens:
        message = f"{limit} is {wanted}, model {model.name!r} gives at most {model.max_output_tokens}"
        raise HttpError(400, "invalid_request", message, param=limit)
    is_stream, options = bool(request.stream), request.stream_options
    if options is not None and not is_stream:
        raise HttpError(400, "invalid_request", "stream_options needs stream: true", param="stream_options")
    output_tokens = wanted or model.max_output_tokens
    # one limit, and always one: or the reservation would not be the maximum
    forwarded = {name: value for name, value in fields.items() if name not in ("max_tokens", "max_completion_tokens")}
    forwarded[limit] = output_tokens
    if is_stream:
        forwarded["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
    others = (models[name] for name in model.fallbacks)
    return Call(
        model=model,
        path=CHAT,
        body=forwarded,
        is_stream=is_stream,
        wants_usage=options is not None and bool(options.include_usage),
        input_bytes=body_bytes,
        # a token stands for at least one byte, so bytes bound tokens whatever the tokenizer
        input_tokens_max=body_bytes + _INPUT_OVERHEAD_TOKENS * len(request.messages),
        output_tokens_max=output_tokens * (request.n or 1),
        tags={name: value[:_TAG_CHARS_MAX] for name, value in (request.metadata or {}).items()},
        # a model that gives less than was asked for would give another answer
        fallbacks=tuple(other for other in others if wanted is None or wanted <= other.max_output_tokens),
        limit=limit if wanted is None else "",
    )
