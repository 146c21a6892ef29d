"""What commands print: tables and fields for people, JSON for programs, progress aside."""

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any


def say(line: str) -> None:
    print(line, flush=True)


def say_aside(line: str) -> None:
    """Progress: not part of what a program reads from us."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Says how far long work is, about once a second, aside from the output."""

    def __init__(self, what: str) -> None:
        self._what, self._said_at = what, time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        if time.monotonic() - self._said_at >= 1:
            self._said_at = time.monotonic()
            say_aside(f"{self._what}: {done:,} of {of:,} events")


def show(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(value)
        return
    width = max(map(len, value))
    for name, item in value.items():
        shown = time_text(item) if name.endswith("_us") and item is not None else item
        print(f"{name.removesuffix('_us'):<{width}}  {json.dumps(shown) if isinstance(shown, dict) else shown}")


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Left-aligned columns, never cut: they are also read by grep and awk."""
    widths = [max(len(line[at]) for line in [columns, *rows]) for at in range(len(columns))]
    for line in [columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def time_text(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
