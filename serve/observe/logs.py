"""One line per event on standard error, as text or as JSON (``TENANTRY_LOG_FORMAT``), of our own packages only.

A line names what happened and the figures that its message holds (``tenant.fenced tenant=acme epoch=7``). Secrets that this
process knows, and whatever looks like a tenant's key, are blacked out in any case. What exceptions say is shown for our own
errors and the system's; another's may quote a request, so there it is the type and the place.
"""

import logging
import re
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

import msgspec

from events.errors import PlatformError

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

PACKAGES = ("actors", "events", "examples", "projections", "serve")
_SECRET_CHARS_MIN = 8
_TENANTS_KEY = r"(sk-[a-z0-9][a-z0-9-]{1,62}-[0-9A-Za-z]{12})-[0-9A-Za-z]{43}-[0-9A-Za-z]{6}"
_FIELD = re.compile(r"([a-z_]+)=%[-.0-9]*[srdfg]|%[-.0-9]*[srdfg]")
_BLACK = "[redacted]"
_CAUSES_MAX = 5


class LineFormatter(logging.Formatter):
    """``secrets`` are texts that no line may hold; short ones would black out words, and are left alone."""

    def __init__(self, line_format: Format, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._is_json = line_format == "json"
        known = sorted({re.escape(text) for text in secrets if len(text) >= _SECRET_CHARS_MIN}, key=len, reverse=True)
        self._secrets = re.compile("|".join([_TENANTS_KEY, *known]))

    def format(self, record: logging.LogRecord) -> str:
        line = self._json(record) if self._is_json else self._text(record)
        return self._secrets.sub(_blackened, line)

    def _text(self, record: logging.LogRecord) -> str:
        parts = [f"{_time(record)} {record.levelname} {record.name} {record.getMessage()}", *_raised(record)]
        return "\n  ".join(parts)

    def _json(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": message.split(" ", 1)[0].rstrip(":"),
            "message": message,
            **({"fields": fields} if (fields := _fields(record)) else {}),
            **({"error": raised} if (raised := _raised(record)) else {}),
        }
        return msgspec.json.encode(line).decode()


class _StandardError(logging.Handler):
    """Whatever standard error is at the moment: a program may have replaced it since."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 - as each of logging's own handlers: who logs must not fail by it
            self.handleError(record)


def configure(line_format: Format, level: Level, secrets: Iterable[str]) -> None:
    """Replaces what an earlier call set up."""
    handler = _StandardError()
    handler.setFormatter(LineFormatter(line_format, secrets))
    handler.set_name("tenantry")
    for package in PACKAGES:
        logger = logging.getLogger(package)
        for before in [each for each in logger.handlers if each.get_name() == "tenantry"]:
            logger.removeHandler(before)
        logger.addHandler(handler)
        logger.setLevel(level.upper())


def _blackened(found: re.Match[str]) -> str:
    return f"{found[1]}-{_BLACK}" if found[1] else _BLACK


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


@lru_cache(maxsize=1_024)
def _names(template: str) -> tuple[str | None, ...]:
    """For each argument of a message, the name that stands before it."""
    return tuple(found[1] for found in _FIELD.finditer(template))


def _fields(record: logging.LogRecord) -> dict[str, str | int | float]:
    arguments = record.args if isinstance(record.args, tuple) else ()
    named = zip(_names(str(record.msg)), arguments, strict=False)
    return {name: value if isinstance(value, int | float) else str(value) for name, value in named if name is not None}


def _raised(record: logging.LogRecord) -> list[str]:
    """The exception and what it came from, each with its place in our code."""
    lines: list[str] = []
    error = record.exc_info[1] if record.exc_info else None
    while error is not None and len(lines) < _CAUSES_MAX:
        frames = traceback.extract_tb(error.__traceback__)
        places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        says = f": {error}" if isinstance(error, PlatformError | OSError) else ""
        lines.append(f"{type(error).__qualname__}{says} at {places}")
        error = error.__cause__ or error.__context__
    return lines
