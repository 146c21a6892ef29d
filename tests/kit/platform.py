"""``tenantry up`` as a process of its own, as a user runs it."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
from openai import OpenAI

from serve.guard import COOKIE
from serve.installation import Running

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


class UpProcess:
    """Owns the process; ``running`` is what it wrote to its ready file."""

    def __init__(self, process: subprocess.Popen[str], running: Running, data_dir: Path, output: list[str]) -> None:
        self.process, self.running, self.data_dir, self.output = process, running, data_dir, output
        # set after its own start, so only what it started shows it
        self.instance = psutil.Process(self.pid_of("nats-server")).environ()[COOKIE]

    def client(self, key: str | None = None, *, max_retries: int = 2) -> OpenAI:
        return OpenAI(base_url=self.running.base_url, api_key=key or self.running.demo_key, max_retries=max_retries)

    def admin(self) -> httpx.Client:
        url = self.running.base_url.removesuffix("/v1") + "/admin/v1"
        headers = {"authorization": f"Bearer {self.running.admin_key}"}
        return httpx.Client(base_url=url, headers=headers, timeout=60)

    def tenantry(self, *arguments: str, expect: int = 0) -> str:
        return tenantry(self.data_dir, *arguments, expect=expect)

    def usage(self, tenant: str) -> dict[str, Any]:
        with self.admin() as admin:
            used: dict[str, Any] = admin.get(f"/tenants/{tenant}/usage").raise_for_status().json()
            return used

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def pids_of(self, name: str) -> list[int]:
        """This instance's processes whose command line or title has ``name`` in it."""
        found = []
        for process in self.descendants():
            try:
                if name in " ".join([process.name(), *process.cmdline()]):
                    found.append(process.pid)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def pid_of(self, name: str) -> int:
        """The only one."""
        found = self.pids_of(name)
        assert len(found) == 1, (name, found)
        return found[0]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)


def tenantry(data_dir: Path, *arguments: str, expect: int = 0) -> str:
    """What the command says on this data directory, on either output; ``expect`` is its exit status."""
    command = [sys.executable, "-m", "serve.cli", *arguments, "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == expect, (arguments, done.stdout + done.stderr)
    return done.stdout + done.stderr


@contextmanager
def running_platform(data_dir: Path, *arguments: str) -> Iterator[UpProcess]:
    ready = data_dir.parent / f"{data_dir.name}-ready.json"
    command = [sys.executable, "-m", "serve.cli", "up", "--data-dir", str(data_dir), "--ready-file", str(ready)]
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output = _read_until_ready(process)
        threading.Thread(target=_read_on, args=(process, output), daemon=True).start()
        running = msgspec.json.decode(ready.read_bytes(), type=Running)
        yield UpProcess(process, running, data_dir, output)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        finally:
            process.kill()


def _read_until_ready(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    output, ends = [], time.monotonic() + START_TIMEOUT_S
    for line in process.stdout:
        output.append(line.rstrip("\n"))
        if line.startswith("Ctrl-C stops it."):
            return output
        assert time.monotonic() < ends, "".join(output)
    raise AssertionError("tenantry up ended before it was ready:\n" + "\n".join(output))


def _read_on(process: subprocess.Popen[str], output: list[str]) -> None:
    """A program whose output nobody reads stops when the pipe is full."""
    assert process.stdout is not None
    with process.stdout as lines:
        output.extend(line.rstrip("\n") for line in lines)
