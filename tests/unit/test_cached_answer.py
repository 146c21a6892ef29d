"""What was streamed can be kept as a whole, and what is kept be streamed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from serve.answer_cache import Wish, wish_of
from serve.cached_answer import chunks_of, is_complete, whole
from serve.http_errors import HttpError

USAGE = {"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11}
calls = st.builds(
    lambda number, name, arguments: {
        "id": f"call-{number}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    },
    st.integers(0, 9),
    st.text(min_size=1),
    st.text(),
)
messages = st.one_of(
    st.builds(lambda text: {"role": "assistant", "content": text}, st.text(min_size=1)),
    st.builds(
        lambda some: {"role": "assistant", "content": None, "tool_calls": some}, st.lists(calls, min_size=1, max_size=3)
    ),
)
logprobs: st.SearchStrategy[Any] = st.none() | st.just(
    {"content": [{"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}
)


def completion(some: list[tuple[dict[str, Any], str, Any]]) -> dict[str, Any]:
    choices = []
    for index, (message, reason, logs) in enumerate(some):
        choice = {"index": index, "message": message, "finish_reason": reason}
        choices.append({**choice, "logprobs": logs} if logs else choice)
    shared = {"id": "chatcmpl-1", "created": 1, "object": "chat.completion", "model": "small"}
    return {**shared, "choices": choices, "usage": USAGE}


completions = st.lists(
    st.tuples(messages, st.sampled_from(["stop", "length", "tool_calls"]), logprobs), min_size=1, max_size=3
).map(completion)


@given(completions)
def test_a_completion_survives_being_streamed(answer: dict[str, Any]) -> None:
    chunks = list(chunks_of(answer, wants_usage=True))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    assert chunks[-1]["usage"] == USAGE
    again = whole(chunks, "small", USAGE)
    ChatCompletion.model_validate(again)
    assert again == answer
    assert is_complete(again)


def test_words_and_logprobs_that_came_one_by_one_are_one_answer() -> None:
    def chunk(delta: dict[str, Any], reason: str | None = None, logs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logs}
        return {"id": "c", "created": 3, "model": "m", "choices": [choice]}

    one = {"content": [{"token": "a"}], "refusal": None}
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "a"}, logs=one),
        chunk({"content": "b"}, logs=one),
    ]
    assert not is_complete(whole(chunks, "small", USAGE)), "the end has not come"
    answer = whole([*chunks, chunk({}, "stop")], "small", USAGE)
    assert answer["choices"][0]["message"]["content"] == "ab"
    assert answer["choices"][0]["logprobs"]["content"] == [{"token": "a"}, {"token": "a"}]
    assert is_complete(answer)


@pytest.mark.parametrize("reason", [None, "content_filter", "error"])
def test_what_was_cut_or_filtered_is_not_complete(reason: str | None) -> None:
    answer = completion([({"role": "assistant", "content": "x"}, "stop", None)])
    answer["choices"][0]["finish_reason"] = reason
    assert not is_complete(answer)
    assert not is_complete({**answer, "choices": []})


@pytest.mark.parametrize(
    ("header", "wish"),
    [(None, None), ("off", None), ("on", Wish(3600)), ("60", Wish(60)), ("Refresh", Wish(3600, only_writes=True))],
)
def test_the_cache_is_used_where_it_is_asked_for(header: str | None, wish: Wish | None) -> None:
    assert wish_of(header) == wish


@pytest.mark.parametrize("header", ["yes", "0", "-1", "1e3", "99999999", ""])
def test_another_wish_is_refused(header: str) -> None:
    if not header:
        assert wish_of(header) is None
        return
    with pytest.raises(HttpError, match="seconds"):
        wish_of(header)
