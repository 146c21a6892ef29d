"""No field that the official client can send is dropped on its way: it reaches the upstream or is refused by its name."""

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import EmbeddingCreateParams
from openai.types.chat import completion_create_params

from serve.chat_request import parse_chat
from serve.embedding_request import parse_embeddings
from serve.http_errors import HttpError
from serve.settings import Model, ModelUpstream

MODELS = {"small": Model(name="small", upstreams=(ModelUpstream(base_url="http://x/v1", model="m"),))}
CHAT_FIELDS = sorted(
    typing.get_type_hints(completion_create_params.CompletionCreateParamsNonStreaming).keys()
    | typing.get_type_hints(completion_create_params.CompletionCreateParamsStreaming).keys()
)
REFUSED = {"audio", "moderation", "prediction", "web_search_options"}
# of a valid kind where the kind is checked here; other fields are the upstream's to judge
VALUES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "model": "small",
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 7,
    "max_completion_tokens": 7,
    "n": 2,
    "metadata": {"team": "a"},
    "modalities": ["text"],
    "service_tier": "default",
}


def sent(field: str, value: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "small", "messages": VALUES["messages"], field: value}
    if field == "stream_options":
        body["stream"] = True
    return parse_chat(msgspec.json.encode(body), MODELS).body


@pytest.mark.parametrize("field", CHAT_FIELDS)
def test_a_chat_field_reaches_the_upstream_or_is_refused_by_its_name(field: str) -> None:
    value = VALUES.get(field, {"any": "thing"})
    if field in REFUSED:
        with pytest.raises(HttpError, match=field) as refusal:
            sent(field, value)
        assert (refusal.value.status, refusal.value.param) == (400, field)
    else:
        assert sent(field, value)[field] == value


def test_tools_choices_and_formats_reach_the_upstream_untouched() -> None:
    fields = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "logprobs": True,
        "top_logprobs": 3,
        "stop": ["a", "b"],
        "seed": 7,
        "logit_bias": {"50256": -100},
    }
    messages = [
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]  # fmt: skip
    body = parse_chat(msgspec.json.encode({"model": "small", "messages": messages, **fields}), MODELS).body
    assert {name: body[name] for name in fields} == fields
    assert body["messages"] == messages


@pytest.mark.parametrize("kind", ["web_search", "web_search_20250305", "code_interpreter", 7])
def test_tools_that_the_server_runs_are_refused(kind: object) -> None:
    """They are billed beside tokens; a client's own tools cost what their words do."""
    own = [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "g"}}]
    assert sent("tools", own)["tools"] == own
    with pytest.raises(HttpError) as refusal:
        sent("tools", [*own, {"type": kind}])
    assert (refusal.value.status, refusal.value.param) == (400, "tools[2].type")


@pytest.mark.parametrize("tier", ["flex", "priority", "scale"])
def test_tiers_with_prices_of_their_own_are_refused(tier: str) -> None:
    with pytest.raises(HttpError, match="service_tier"):
        sent("service_tier", tier)


EMBEDDING: dict[str, Any] = {
    "input": "hi", "model": "small", "dimensions": 8, "encoding_format": "base64", "user": "ann"
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(typing.get_type_hints(EmbeddingCreateParams)))
def test_an_embedding_field_reaches_the_upstream(field: str) -> None:
    body = {"model": "small", "input": "hi", field: EMBEDDING[field]}
    assert parse_embeddings(msgspec.json.encode(body), MODELS).body[field] == EMBEDDING[field]


@given(
    st.one_of(
        st.text(min_size=1),
        st.lists(st.text(min_size=1), min_size=1),
        st.lists(st.integers(0, 200_000), min_size=1),
        st.lists(st.lists(st.integers(0, 200_000), min_size=1), min_size=1),
    )
)
def test_no_input_has_more_tokens_than_were_reserved(given_input: Any) -> None:
    call = parse_embeddings(msgspec.json.encode({"model": "small", "input": given_input}), MODELS)
    texts = [given_input] if isinstance(given_input, str) else given_input
    tokens = sum(
        1 if isinstance(text, int) else len(text.encode() if isinstance(text, str) else text) for text in texts
    )
    assert call.input_tokens_max >= tokens
    assert call.output_tokens_max == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": []},
        {"input": [""]},
        {"input": ["a", 1]},
        {"input": [[1], "a"]},
        {"input": [[]]},
        {"input": ["a"] * 2_049},
        {"input": {"text": "a"}},
        {"encoding_format": "hex"},
        {"dimensions": 0},
        {"truncate": True},
        {"user": 3},
    ],
)
def test_a_malformed_embedding_request_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(HttpError) as refusal:
        parse_embeddings(msgspec.json.encode({"model": "small", "input": "a", **fields}), MODELS)
    assert (refusal.value.status, refusal.value.param) == (400, next(iter(fields)))
