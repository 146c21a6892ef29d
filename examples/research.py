"""Research: look a question up in a library, have a model read what was found, and answer from that.

Two ways to the same end. The saga ``research`` decides the steps itself, so any model will do, the small local one included:

    tenantry runs start demo research --input '{"question": "Why are there two tides a day?"}'

An agent decides them by itself, with the saga ``search`` as its tool; for that, the model has to know how to call tools:

    tenantry runs agent demo MODEL "Why are there two tides a day?" --tool saga:search --limits '{"turns": 5}'

Either way each call of the model is a step that is paid once and never repeated once it has finished, and
``tenantry runs follow`` shows the text while it is written. The library is five notes here, or the text files of the directory
that ``RESEARCH_LIBRARY`` names.
"""

import os
import re
from pathlib import Path
from typing import Any

import msgspec

from actors.run import Saga, Step, register
from actors.run.function import Flow, saga_function
from actors.run.functions import step_function

LIBRARY_VARIABLE = "RESEARCH_LIBRARY"
NOTES = {
    "tides": (
        "The Moon pulls harder on the side of the Earth that faces it, and less on the far side. The sea bulges on both "
        "sides, and the Earth turns below the two bulges: so most coasts have two tides a day."
    ),
    "seasons": "The axis of the Earth is tilted, so each half of it leans towards the Sun for half of the year.",
    "lighthouses": "The lens of a lighthouse turns, and its pattern of flashes tells sailors which one it is.",
    "salt": "Rivers carry salts to the sea; water leaves it as vapour, and the salts stay.",
    "whales": "Whales breathe air. The largest of them, the blue whale, eats some four tonnes of krill a day.",
}
_ANSWER_TOKENS = 48


class Query(msgspec.Struct, frozen=True):
    """``words`` to look for; at most ``most`` passages come back."""

    words: str
    most: int = 2


class Question(msgspec.Struct, frozen=True):
    question: str
    model: str = "gemma-3-270m"
    passages: int = 2


class Passage(msgspec.Struct, frozen=True):
    title: str
    text: str


@step_function("research.search")
def search(query: Query) -> list[Passage]:
    """Passages that share words with the query, those with the most first."""
    wanted = _words(query.words)
    scored = [(len(wanted & _words(f"{title} {text}")), title, text) for title, text in _library().items()]
    best = sorted((row for row in scored if row[0]), key=lambda row: (-row[0], row[1]))
    return [Passage(title, text) for _, title, text in best[: query.most]]


def _library() -> dict[str, str]:
    directory = os.environ.get(LIBRARY_VARIABLE)
    if not directory:
        return NOTES
    return {path.stem: path.read_text() for path in sorted(Path(directory).iterdir()) if path.suffix in (".md", ".txt")}


def _words(text: str) -> set[str]:
    """Without the short ones, which are in every text, and without the plural's s."""
    return {word.rstrip("s") for word in re.findall(r"[a-z]{4,}", text.lower())}


register(
    Saga(
        "search",
        input=Query,
        steps=(Step("look", function="research.search", args=lambda run: run.input),),
        output=lambda run: run["look"],
    )
)


@saga_function("research", input=Question)
async def research(flow: Flow, given: Question) -> dict[str, Any]:
    """Look it up, have each passage read by itself, side by side, and answer from what they say."""
    looked_up = {"words": given.question, "most": given.passages}
    found = await flow.function("look", "research.search", looked_up)
    if not found:
        return {"answer": "The library has nothing about that.", "sources": []}
    read = await flow.gather(
        *(
            flow.model(f"read-{passage['title']}", given.model, _asked(given.question, passage["text"]))
            for passage in found
        )
    )
    notes = "\n".join(_said(answer) for answer in read)
    answer = await flow.model("answer", given.model, _asked(given.question, notes))
    return {"answer": _said(answer), "sources": [passage["title"] for passage in found]}


def _asked(question: str, text: str) -> dict[str, Any]:
    content = f"{text}\nFrom this text alone: {question}"
    return {"messages": [{"role": "user", "content": content}], "max_tokens": _ANSWER_TOKENS, "temperature": 0}


def _said(answer: Any) -> str:
    return str(answer["message"].get("content") or "").strip()
