"""Ends what an instance started, in whatever way the instance itself ends.

Everything an instance starts inherits the environment variable ``TENANTRY_INSTANCE``, and so does whatever that starts
in turn: Ray's servers and workers, HAProxy, the broker, the store. The kernel shows that variable in ``/proc``, so the
processes of one instance are told from those of another, or of any other Ray, without a list that could go stale.

The guard is one more process, in a session of its own, at the other end of a pipe that only the instance holds. End of
file means that the instance let go or is gone, ``kill -9`` included; the guard then kills whatever carries the cookie.

Linux and the standard library only: the guard runs this file alone, in an isolated interpreter, in 30 ms and 13 MiB.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

COOKIE = "TENANTRY_INSTANCE"
_PR_SET_PDEATHSIG = 1
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the guard outlives the terminal and a polite kill
_INTERPRETER = (sys.executable, "-I", "-S", __file__)


class Guard:
    """The pipe to a running guard."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def release(self, timeout_s: float = 40.0) -> None:
        """Let go: what is left of the instance is killed, and gone on return. Safe to call twice.

        Raises:
            subprocess.TimeoutExpired: Something could not be killed in time; the guard goes on trying.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout_s)


def start_guard(instance: str) -> Guard:
    """Mark every process started from now on as part of ``instance``, and watch over them.

    Call it before anything else is started, once per process; ``instance`` must be unique on the machine.
    """
    environment = {name: value for name, value in os.environ.items() if name != COOKIE}  # the guard is no prey
    os.environ[COOKIE] = instance
    # setproctitle, which Ray's agents use, writes its title over the environment unless told not to.
    os.environ["SPT_NOENV"] = "1"
    process = subprocess.Popen(
        (*_INTERPRETER, instance),
        stdin=subprocess.PIPE,  # its write end is closed on exec: no other child holds it
        stdout=subprocess.DEVNULL,  # or a reader of our output would wait for the guard too
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=environment,
        start_new_session=True,
    )
    return Guard(process)


def sweep(instance: str, exclude: Collection[int] = (), timeout_s: float = 30.0) -> int:
    """Kill every process of ``instance`` except the caller and ``exclude``; returns how many there were.

    Ends when two scans in a row find none, or after ``timeout_s``.
    """
    spared = {os.getpid(), *exclude}
    deadline = time.monotonic() + timeout_s
    killed, empty_scans = 0, 0
    while empty_scans < 2 and time.monotonic() < deadline:
        found = [process for process in members(instance) if process.pid not in spared]
        killed += _kill(found)
        empty_scans = 0 if found else empty_scans + 1
        if empty_scans == 1:
            time.sleep(0.1)  # a child just forked by the instance shows the cookie only after its exec
    return killed


class Member(NamedTuple):
    """A process that cannot be confused with a later one of the same pid."""

    pid: int
    started: int  # in clock ticks since boot


def members(instance: str) -> list[Member]:
    """Live processes that carry the cookie of ``instance``, and their descendants, which may have cleared it."""
    cookie = f"{COOKIE}={instance}".encode()
    processes = {process.pid: (process, parent) for process, parent in _processes()}
    found = {pid for pid in processes if cookie in _environment(pid)}
    children: dict[int, list[int]] = {}
    for process, parent in processes.values():
        children.setdefault(parent, []).append(process.pid)
    queue = list(found)
    while queue:
        fresh = [pid for pid in children.get(queue.pop(), ()) if pid not in found]
        found.update(fresh)
        queue.extend(fresh)
    return [processes[pid][0] for pid in sorted(found)]


def die_with_parent(command: Sequence[str]) -> list[str]:
    """``command`` as a child that gets SIGTERM from the kernel when the thread that starts it ends.

    For direct children, and started from the main thread only. The guard alone would do; this also holds when someone
    kills every Python process at once, the guard among them. It execs, so the child's pid is the command's, and unlike
    ``preexec_fn`` it runs nothing between fork and exec, which is unsafe beside Ray's threads.
    """
    return [*_INTERPRETER, "--exec", str(os.getpid()), *command]


def end_with_uv() -> bool:
    """Have the kernel send SIGTERM when the ``uv run`` around this process dies; False if there is none.

    uv passes SIGTERM on but cannot pass on SIGKILL, which would leave this process without anyone to stop it.
    """
    parent = os.getppid()
    with contextlib.suppress(OSError):
        if Path(f"/proc/{parent}/comm").read_text().strip() in {"uv", "uvx"}:
            _end_with(parent)
            return True
    return False


def _end_with(parent: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call: no signal will come
        os.kill(os.getpid(), signal.SIGTERM)


def _processes() -> Iterator[tuple[Member, int]]:
    """Every live process with its parent's pid."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent, started = _stat(int(entry.name))
                if state not in {b"Z", b"X"}:
                    yield Member(int(entry.name), started), parent


def _stat(pid: int) -> tuple[bytes, int, int]:
    """State, parent's pid, start time."""
    # "pid (name) state ppid ... starttime": the name may hold anything, brackets too
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0], int(fields[1]), int(fields[19])


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return []


def _kill(found: Sequence[Member]) -> int:
    """SIGKILL, and wait up to a second for the end of all; returns how many got the signal."""
    waiting = select.poll()
    with contextlib.ExitStack() as opened:
        handles = []
        for process in found:
            with contextlib.suppress(OSError):  # it ended by itself, or is another user's
                handle = os.pidfd_open(process.pid)
                opened.callback(os.close, handle)
                if _stat(process.pid)[2] == process.started:  # else the pid is someone else's by now
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    handles.append(handle)
                    waiting.register(handle, select.POLLIN)
        killed, deadline = len(handles), time.monotonic() + 1.0
        while handles and (left_s := deadline - time.monotonic()) > 0:
            for handle, _ in waiting.poll(left_s * 1000):
                waiting.unregister(handle)
                handles.remove(handle)
    return killed


def _main(arguments: Sequence[str]) -> None:
    if arguments[0] == "--exec":
        _end_with(int(arguments[1]))
        os.execvp(arguments[2], list(arguments[2:]))  # noqa: S606 - what die_with_parent was given
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    sweep(arguments[0])


if __name__ == "__main__":
    _main(sys.argv[1:])
