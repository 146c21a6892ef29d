"""Spans of time as people write them: 90s, 15m, 12h, 30d."""

import re

import typer

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(r"([0-9]{1,9})([smhd])")


def seconds(text: str) -> int:
    """Raises typer.BadParameter."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"expected a span such as 90s, 15m, 12h or 30d, got {text!r}")
    return int(match[1]) * _UNITS_S[match[2]]
