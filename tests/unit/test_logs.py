"""Lines of the log: what they show, and what they never do."""

import json
import logging

import pytest

from events.errors import StoreUnavailableError
from serve.keys import make_key
from serve.observe.logs import LineFormatter, configure


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    raised = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("actors.activation", logging.WARNING, "x.py", 1, message, args, raised)


def test_a_json_line_has_the_event_and_its_figures() -> None:
    line = json.loads(LineFormatter("json").format(record("tenant.fenced tenant=%s epoch=%s: %s", "acme", 7, "why")))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "actors.activation",
        "event": "tenant.fenced",
        "message": "tenant.fenced tenant=acme epoch=7: why",
        "fields": {"tenant": "acme", "epoch": 7},
    }


def test_whatever_is_logged_stays_one_line_of_json() -> None:
    text = LineFormatter("json").format(record("x.y z=%s", 'a\n{"level": "forged"}\u2028'))
    assert "\n" not in text
    assert json.loads(text)["fields"] == {"z": 'a\n{"level": "forged"}\u2028'}


@pytest.mark.parametrize("line_format", ["text", "json"])
def test_secrets_and_keys_are_blacked_out_wherever_they_stand(line_format: str) -> None:
    key = make_key("pepper", "acme", "k").text
    error = StoreUnavailableError(f"redis://:the-password@host says {key}")
    formatter = LineFormatter(line_format, ["the-password", "a", ""])  # type: ignore[arg-type]
    line = formatter.format(record("a.b key=%s: %s", key, "the-password", error=error))
    assert key not in line
    assert key.rpartition("-")[0][-43:] not in line
    assert "the-password" not in line
    assert line.count("[redacted]") >= 4
    assert "sk-acme-" in line  # whose it was is no secret
    assert " a " not in line or "[redacted]" in line


@pytest.mark.parametrize("line_format", ["text", "json"])
def test_what_a_foreign_exception_says_is_not_repeated_but_where_it_rose_is(line_format: str) -> None:
    def fail() -> None:
        raise ValueError("the prompt")

    try:
        try:
            fail()
        except ValueError as inner:
            raise RuntimeError("the answer") from inner
    except RuntimeError as error:
        line = LineFormatter(line_format).format(record("a.b", error=error))  # type: ignore[arg-type]
    assert "the prompt" not in line
    assert "the answer" not in line
    assert "RuntimeError at " in line
    assert "test_logs.py" in line
    assert " fail" in line
    full = record("a.b", error=OSError(28, "No space left on device"))
    assert "No space left" in LineFormatter(line_format).format(full)  # type: ignore[arg-type]


def test_configuring_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: logging.getLogger(name).level for name in ("serve", "events", "actors", "projections", "examples")}
    try:
        for line_format in ("text", "json"):
            configure(line_format, "info", [])
        logging.getLogger("serve.somewhere").info("a.b c=%s", 1)
        logging.getLogger("serve.somewhere").debug("too quiet")
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["fields"] == {"c": 1}
    finally:
        for name, level in before.items():
            logger = logging.getLogger(name)
            logger.setLevel(level)
            for handler in [each for each in logger.handlers if each.get_name() == "tenantry"]:
                logger.removeHandler(handler)
