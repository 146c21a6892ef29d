"""What a call may cost at most, and what it has used."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.tools.usage_meter import Tokens, UsageMeter
from events.money import Price
from serve.chat_request import check_depth, parse_chat
from serve.http_errors import HttpError
from serve.settings import Model, ModelUpstream

MODEL = Model(
    name="small",
    upstreams=(ModelUpstream(base_url="http://x/v1", model="m"),),
    price=Price.model_validate({"input_usd_per_mtok": "1", "output_usd_per_mtok": "2"}),
    max_output_tokens=100,
)


def parse(**fields: Any) -> Any:
    body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(msgspec.json.encode(body), {"small": MODEL})


def test_without_a_limit_of_its_own_a_request_gets_the_models_so_that_the_reservation_is_the_maximum() -> None:
    call = parse()
    assert call.body["max_tokens"] == call.output_tokens_max == 100


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_limit_is_the_callers_own_where_it_names_one(field: str) -> None:
    call = parse(**{field: 7, "n": 3})
    assert call.output_tokens_max == 21
    assert "max_tokens" not in call.body or call.body["max_tokens"] == 7


@pytest.mark.parametrize("fields", [{"max_tokens": 101}, {"max_completion_tokens": 101}, {"n": 0}, {"n": 129}])
def test_limits_out_of_range_are_refused_by_name(fields: dict[str, int]) -> None:
    with pytest.raises(HttpError) as refusal:
        parse(**fields)
    assert refusal.value.param == next(iter(fields))


def test_one_limit_is_forwarded_and_it_is_the_reserved_one() -> None:
    call = parse(max_completion_tokens=1, max_tokens=90)
    assert call.output_tokens_max == 1
    assert call.body["max_completion_tokens"] == 1
    assert "max_tokens" not in call.body


@pytest.mark.parametrize("field", ["n_predict", "best_of", "ignore_eos", "audio", "web_search_options", "service_tier"])
def test_what_could_cost_more_than_is_reserved_is_refused_by_name(field: str) -> None:
    with pytest.raises(HttpError, match=field) as refusal:
        parse(**{field: 1})
    assert refusal.value.param == field


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "http://x"}}, {"type": "file"}, {}, 3])
def test_parts_whose_tokens_nobody_can_bound_are_refused(part: Any) -> None:
    with pytest.raises(HttpError, match="only text parts"):
        parse(messages=[{"role": "user", "content": [part]}])


def test_null_is_not_there() -> None:
    call = parse(stream=True, stream_options=None, max_tokens=None, n=None)
    assert call.body["stream_options"] == {"include_usage": True}
    assert call.output_tokens_max == 100


def test_fields_without_cost_go_to_the_upstream_as_they_came() -> None:
    assert parse(seed=7, response_format={"type": "json_object"}).body["response_format"] == {"type": "json_object"}


def test_a_stream_always_asks_the_upstream_for_usage() -> None:
    call = parse(stream=True)
    assert call.body["stream_options"] == {"include_usage": True}
    assert call.wants_usage is False
    with pytest.raises(HttpError):
        parse(stream_options={"include_usage": True})


@given(st.text(max_size=2_000))
def test_no_prompt_has_more_tokens_than_were_reserved(text: str) -> None:
    """A token stands for at least one byte, whatever the tokenizer."""
    call = parse(messages=[{"role": "user", "content": text}])
    assert call.input_tokens_max >= len(text.encode())
    cost_max = call.model.price.cost_nano_usd(call.input_tokens_max, call.output_tokens_max)
    assert cost_max == 1_000 * call.input_tokens_max + 2_000 * 100


@pytest.mark.parametrize(
    "inner", ["[]" * 2_000, "[" * 60 + "]" * 60, '{"a":[{}]}' + ",[]" * 100, '"\\\\"' + ",[]" * 99]
)
def test_wide_is_not_deep(inner: str) -> None:
    check_depth(f'{{"x": [{inner}]}}'.encode())


@pytest.mark.parametrize("inner", ["[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70, "[" * 4_000_000])
def test_deep_is_refused_quickly(inner: str) -> None:
    with pytest.raises(HttpError, match="nests deeper"):
        check_depth(inner.encode())


@pytest.mark.timeout(10)
def test_quotes_and_backslashes_take_no_longer_than_their_number() -> None:
    """A regular expression that backtracks would take hours here, and the whole gateway with it."""
    with pytest.raises(HttpError):
        check_depth(b"[" * 65 + b'"\\' * 2_000_000)


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "x" * 40},
        {"tool_calls": [{"index": 0, "id": "y" * 99, "type": "function", "function": {"arguments": "x" * 40}}]},
    ],
)
def test_whatever_a_model_writes_counts_where_it_leaves_before_it_reports(delta: dict[str, Any]) -> None:
    meter = UsageMeter(4)
    meter.see({"choices": [{"delta": {"role": "assistant", **delta}}]})
    assert meter.tokens() == Tokens(1, 10, "estimated")


def test_deep_nesting_in_strings_is_no_nesting() -> None:
    assert parse(messages=[{"role": "user", "content": "[{" * 1_000 + '\\"'}])


def test_the_upstreams_own_count_wins() -> None:
    meter = UsageMeter(400)
    meter.see({"choices": [{"delta": {"content": "x" * 40}}]})
    assert meter.tokens() == Tokens(100, 10, "estimated")
    meter.see({"usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    assert meter.tokens() == Tokens(3, 4, "measured")


@pytest.mark.parametrize(
    "usage",
    [None, "x", {}, {"prompt_tokens": -1, "completion_tokens": 1}, {"prompt_tokens": 1.5, "completion_tokens": 1}],
)
@pytest.mark.parametrize("choices", [None, "x", [], [None], [{"delta": None}], [{"delta": {"content": 3}}]])
def test_nonsense_from_an_upstream_is_not_counted(usage: Any, choices: Any) -> None:
    meter = UsageMeter(8)
    meter.see({"usage": usage, "choices": choices})
    assert meter.tokens() == Tokens(2, 0, "estimated")


def test_what_is_written_after_an_early_report_is_not_free() -> None:
    """Some servers report with the first chunk, and a client may leave before the last."""
    meter = UsageMeter(400)
    meter.see({"usage": {"prompt_tokens": 90, "completion_tokens": 1}, "choices": [{"delta": {"content": "x" * 4}}]})
    assert meter.tokens() == Tokens(90, 1, "measured")
    for _ in range(1_000):
        meter.see({"choices": [{"delta": {"content": "word"}}]})
    assert meter.tokens() == Tokens(90, 1_001, "estimated")
    meter.see({"usage": {"prompt_tokens": 90, "completion_tokens": 1_024}, "choices": []})
    assert meter.tokens() == Tokens(90, 1_024, "measured")


def test_an_early_report_of_zeros_is_none() -> None:
    meter = UsageMeter(400)
    meter.see({"usage": {"prompt_tokens": 0, "completion_tokens": 0}, "choices": [{"delta": {"role": "assistant"}}]})
    meter.see({"choices": [{"delta": {"content": "x" * 40}}]})
    assert meter.tokens() == Tokens(100, 10, "estimated")
