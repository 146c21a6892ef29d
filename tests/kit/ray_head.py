"""A Ray cluster of one node as ``ray start --head`` makes it, on loopback, which no ``tenantry up`` knows of."""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serve.ports import free_ports

_START_TIMEOUT_S, _STOP_TIMEOUT_S = 90.0, 60.0


class RayHead:
    """``environment`` is what Ray was started with, for commands that talk to it."""

    def __init__(self, environment: Mapping[str, str], dashboard_url: str) -> None:
        self._environment, self._dashboard_url = environment, dashboard_url

    def run(self, *command: str) -> str:
        """What it printed. Raises AssertionError where it failed."""
        done = subprocess.run(
            command, env=dict(self._environment), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *command: str) -> str:
        """As a job; returns what it printed when it is done."""
        return self.run("ray", "job", "submit", "--address", self._dashboard_url, "--", *command)


def environment_of_node(run_dir: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """As a node's shell has it after ``eval "$(tenantry node env)"``."""
    metrics_port, fallback_port = free_ports(2)
    command = [
        *(sys.executable, "-m", "serve.cli", "node", "env", "--run-dir", str(run_dir)),
        *("--metrics-port", str(metrics_port), "--fallback-port", str(fallback_port)),
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exported = dict(shlex.split(line)[1].split("=", 1) for line in printed.splitlines())
    scripts = sysconfig.get_path("scripts")
    return {
        **os.environ,
        **exported,
        **settings,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # a misnomer: off, a node's address is 127.0.0.1
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }


@contextmanager
def ray_head(settings: Mapping[str, str]) -> Iterator[RayHead]:
    with tempfile.TemporaryDirectory(prefix="tenantry-head-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        environment = environment_of_node(Path(directory) / "e", settings)
        gcs_port, dashboard_port, client_port, agent_port = free_ports(4)
        command = [
            *("ray", "start", "--head", "--block", "--num-cpus=4", f"--port={gcs_port}", "--node-ip-address=127.0.0.1"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", f"--temp-dir={directory}/r"),
            *(f"--ray-client-server-port={client_port}", f"--dashboard-agent-listen-port={agent_port}"),
            *("--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000"),
        ]
        log_path = Path(directory) / "head.log"
        with log_path.open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{dashboard_port}"
            _wait_for(f"{url}/api/version", log_path)
            _wait_for(f"http://127.0.0.1:{agent_port}/", log_path)  # which starts jobs
            yield RayHead({**environment, "RAY_ADDRESS": f"127.0.0.1:{gcs_port}"}, url)
        finally:
            process.terminate()
            process.wait(_STOP_TIMEOUT_S)


def _wait_for(url: str, log_path: Path) -> None:
    ends = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except urllib.error.HTTPError:  # it wants a token, or another path: it is there
            return
        except OSError:
            assert time.monotonic() < ends, f"nobody answers at {url}: {log_path.read_text()}"
            time.sleep(0.1)  # only asking tells
