"""Programs that a measurement starts: waited for, weighed, and ended whatever happens."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from serve.guard import COOKIE, die_with_parent, members, start_guard, sweep
from serve.installation import Running
from tests.bench.results import BenchError

ROOT = Path(__file__).resolve().parents[2]
_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 40.0
_IDLE_PERIOD_S, _IDLE_PERIODS_MAX = 1.0, 20
_IDLE_CHANGE_MIB = 1.0

THINKING = "thinking"  # a model that takes its time, as models do
_MODELS = """\
models:
  - name: instant
    price: {{input_usd_per_mtok: "0.10", output_usd_per_mtok: "0.40"}}
    upstreams:
      - {{base_url: "{0}", model: instant}}
  - name: thinking
    price: {{input_usd_per_mtok: "0.10", output_usd_per_mtok: "0.40"}}
    upstreams:
      - {{base_url: "{0}", model: thinking}}
"""


@contextmanager
def guarded() -> Iterator[str]:
    """The cookie of everything started inside. What is left of it at the end, even at the end by SIGKILL, is killed.

    SIGTERM raises SystemExit, as Ctrl-C raises KeyboardInterrupt: everything is left in order.
    """
    instance = uuid.uuid4().hex
    guard = start_guard(instance)
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield instance
    finally:
        guard.release()
        signal.signal(signal.SIGTERM, before)
        os.environ.pop(COOKIE, None)


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def environment_kept() -> Iterator[None]:
    """Programs started later find the environment that this process was started with, whichever rows ran before."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory with a short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="tb-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@contextmanager
def launched(instance: str, module: str, *arguments: str, ready: Path) -> Iterator[float]:
    """Run a module of this clone as a program; yields the seconds from its launch until the file ``ready`` was there.

    Raises:
        BenchError: It ended, or took two minutes, before that; with the end of its output.
    """
    log = ready.with_suffix(".log")
    command = die_with_parent([sys.executable, "-m", module, *arguments])
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is for us; we end it in order
        )
    try:
        wait_for(ready, process, log)
        yield time.perf_counter() - began
    finally:
        _stop(process)
        sweep(instance)


def wait_for(ready: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    ends = time.monotonic() + _READY_TIMEOUT_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > ends:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise BenchError(f"{process.args!r} did not become ready (exit status {process.poll()}):\n{tail}")
        time.sleep(0.005)  # --ready-file is all that it tells, and the standard library has no watch on files


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def model_server(instance: str) -> Iterator[str]:
    """A model server that answers at once, for the model ``instant``; yields its base URL."""
    with (
        scratch() as directory,
        launched(instance, "tests.bench.model_server", str(directory / "port"), ready=directory / "port"),
    ):
        yield f"http://127.0.0.1:{int((directory / 'port').read_text())}/v1"


@contextmanager
def platform(instance: str, model_url: str = "http://127.0.0.1:9/v1") -> Iterator[tuple[float, Running]]:
    """``tenantry up`` on a fresh data directory: the seconds it took, and where it runs. Its one model is ``instant``; by
    default nobody answers for it: the small local one would count as the platform's.
    """
    with scratch() as directory:
        models, ready = directory / "models.yaml", directory / "ready.json"
        models.write_text(_MODELS.format(model_url))
        options = ("--data-dir", str(directory / "data"), "--ready-file", str(ready), "--models", str(models))
        with launched(instance, "serve.cli", "up", *options, ready=ready) as start_s:
            yield start_s, msgspec.json.decode(ready.read_bytes(), type=Running)


def idle_mib(instance: str) -> float:
    """Memory of all processes of the instance (PSS: shared pages are split), once it has stopped changing."""
    before = _pss_mib(instance)
    for _ in range(_IDLE_PERIODS_MAX):
        time.sleep(_IDLE_PERIOD_S)  # the measure itself: no change over this time
        now = _pss_mib(instance)
        if abs(now - before) < _IDLE_CHANGE_MIB:
            return now
        before = now
    return before


def _pss_mib(instance: str) -> float:
    return sum(_pss_kib(process.pid) for process in members(instance)) / 1024


def _pss_kib(pid: int) -> int:
    with suppress(OSError):  # it has just ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
