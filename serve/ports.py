"""Loopback ports for servers that keep theirs over restarts."""

import contextlib
import random
import socket
from pathlib import Path
from urllib.parse import urlsplit

from events.errors import PlatformError

_LOOPBACK = "127.0.0.1"
_CONNECT_TIMEOUT_S = 5.0
_LOWEST = 10_000  # below are the ports that well-known servers expect to have
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_RANGE = (32_768, 60_999)


class ServerUnreachableError(PlatformError):
    code = "server_unreachable"


class PortInUseError(PlatformError):
    code = "port_in_use"

    def __init__(self, port: int, what: str) -> None:
        super().__init__(port, what)
        self.port, self.what = port, what

    def __str__(self) -> str:
        return (
            f"port {self.port} (for {self.what}) is in use by another program: "
            "stop that one, choose another port, or leave the choice to us by not naming one"
        )


def free_ports(count: int) -> list[int]:
    """Different free ports. Another process may take one before it is used: nothing reserves it.

    None of those that the system hands out by itself, to connections and to servers that name no port (Ray's workers):
    while a server of ours restarts, its port would be anybody's. All the same where there are too few others.
    """
    candidates = _beside_ephemeral()
    random.SystemRandom().shuffle(candidates)
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in [*candidates, *[0] * count]:
            if len(found) == count:
                break
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind((_LOOPBACK, port))
                found.append(probe.getsockname()[1])
        return found


def free_port() -> int:
    return free_ports(1)[0]


def require_free(port: int, what: str) -> int:
    """The port, if nobody listens on it. Raises PortInUseError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError as error:
            raise PortInUseError(port, what) from error
    return port


def require_reachable(variable: str, url: str, default_port: int) -> None:
    """Returns if somebody listens at one of the addresses of a URL (NATS takes several, parted by commas). Said before
    anything is started, because what is started waits for that server in vain.

    Raises:
        ServerUnreachableError: Nobody does; it names the setting, and no password.
    """
    problems = []
    for each in url.split(","):
        parts = urlsplit(each if "://" in each else f"//{each}")
        if not parts.hostname:
            return  # a socket file, say: whoever connects will tell
        address = parts.hostname, parts.port or default_port
        try:
            socket.create_connection(address, _CONNECT_TIMEOUT_S).close()
        except OSError as error:
            problems.append(f"{address[0]}:{address[1]} ({error.strerror or error})")
        else:
            return
    raise ServerUnreachableError(
        f"nobody listens at {', '.join(problems)}: start the server that {variable} names, or unset {variable} and "
        "`tenantry up` starts one"
    )


def _beside_ephemeral() -> list[int]:
    low, high = _USUAL_RANGE
    with contextlib.suppress(OSError, ValueError):
        low, high = map(int, _RANGE_FILE.read_text().split())
    return [*range(_LOWEST, low), *range(high + 1, 65_536)]
