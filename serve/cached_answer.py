"""A completion, whole and as a stream: what was streamed can be kept as a whole, and what is kept be streamed. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

from actors.tools.model import Assembled

_FINISHED = ("stop", "length", "tool_calls", "function_call")
_OF_ALL = ("id", "created", "system_fingerprint")


def is_complete(answer: dict[str, Any]) -> bool:
    """Whether nothing of it is missing, and nothing was filtered out of it."""
    if isinstance(answer.get("data"), list):
        return True
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        return False
    return all(isinstance(choice, dict) and choice.get("finish_reason") in _FINISHED for choice in choices)


def whole(chunks: Sequence[dict[str, Any]], model: str, usage: dict[str, Any]) -> dict[str, Any]:
    """The completion that the chunks make up."""
    assembled = Assembled()
    for chunk in chunks:
        assembled.add(chunk)
    choices = assembled.choices()
    for choice in choices:
        for call in choice["message"].get("tool_calls") or ():
            call.pop("index", None)  # of chunks only
        choice["message"].setdefault("content", None)
    first = next((chunk for chunk in chunks if chunk.get("choices")), {})
    kept = {name: first[name] for name in _OF_ALL if name in first}
    return {**kept, "object": "chat.completion", "model": model, "choices": choices, "usage": usage}


def chunks_of(answer: dict[str, Any], *, wants_usage: bool) -> Iterator[dict[str, Any]]:
    """The chunks of a stream that say the same: one per choice with all of it, one per choice with its end."""
    shared = {name: answer[name] for name in _OF_ALL if name in answer}
    shared |= {"object": "chat.completion.chunk", "model": answer.get("model")}
    for choice in answer["choices"]:
        delta = dict(choice["message"])
        if calls := delta.get("tool_calls"):
            delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
        part = {"index": choice.get("index", 0), "delta": delta, "finish_reason": None}
        if choice.get("logprobs") is not None:
            part["logprobs"] = choice["logprobs"]
        yield {**shared, "choices": [part]}
        end = {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice["finish_reason"]}
        yield {**shared, "choices": [end]}
    if wants_usage:
        yield {**shared, "choices": [], "usage": answer.get("usage")}
