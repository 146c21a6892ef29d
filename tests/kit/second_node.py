"""A second Ray node beside a running platform, on the same machine and on loopback: ``ray start`` without its public address.

Run as a program it is that node, until it is told to end: ``python -m tests.kit.second_node GCS_ADDRESS DIRECTORY``.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from serve import ray_runtime
from serve.guard import members

_STOP_TIMEOUT_S = 30.0


class SecondNode(msgspec.Struct, frozen=True):
    """``id`` is Ray's, ``pid`` of the process that all others of the node descend from."""

    id: str
    pid: int

    def kill(self) -> None:
        """As when its machine loses power."""
        first = psutil.Process(self.pid)
        for process in (*first.children(recursive=True), first):
            with contextlib.suppress(psutil.NoSuchProcess):  # it was another's child, and ended with that
                process.kill()


@contextmanager
def second_node(instance: str, ray_address: str) -> Iterator[SecondNode]:
    """Inside, the node is part of the cluster of the ``tenantry up`` whose processes carry that cookie."""
    running = [psutil.Process(member.pid) for member in members(instance)]
    (head,) = (process for process in running if process.name() == "gcs_server")
    environment = {
        name: value for name, value in head.environ().items() if name not in ("RAY_JOB_ID", "RAY_RAYLET_PID")
    }
    with tempfile.TemporaryDirectory(prefix="tenantry-node-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        command = [sys.executable, "-m", "tests.kit.second_node", ray_address, directory]
        root = Path(__file__).parents[2]
        process = subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            with process.stdout as lines:
                node_id = lines.readline().strip()
            assert node_id, "the node did not start"
            yield SecondNode(node_id, process.pid)
        finally:
            process.terminate()
            process.wait(_STOP_TIMEOUT_S)


def main(gcs_address: str, directory: str) -> None:
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    with ray_runtime.only_what_is_used():
        parameters = RayParams(
            gcs_address=gcs_address,
            node_ip_address="127.0.0.1",
            num_cpus=4,
            num_gpus=0,
            object_store_memory=100 * 2**20,
            node_manager_port=0,
            min_worker_port=0,
            max_worker_port=0,
            temp_dir=str(Path(directory) / "r"),
        )
        parameters.dashboard_agent_listen_port = None
        node = Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=True)
    ended = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)
    print(node.node_id, flush=True)
    signal.sigwait(ended)
    node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    main(*sys.argv[1:])
