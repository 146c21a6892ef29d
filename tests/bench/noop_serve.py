"""The ceiling of a start: plain Ray, plain Serve with its HAProxy, an application that does nothing.

Run as a program: from its launch until the file named on its command line exists, the application has answered 200.
"""

import argparse
import logging
import os
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from serve.asgi import Receive, Scope, Send
from serve.ports import free_ports

_BODY = b"ok"


class Noop:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_BODY))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _BODY})


def start(directory: Path) -> str:
    """Start all of it, with its files in ``directory``; returns the application's address."""
    port, metrics_port, fallback_port = free_ports(3)
    os.environ |= {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # fixed ports and a directory for all of the machine otherwise, which another Serve may use
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "state"),
    }
    import ray

    ray.init(
        include_dashboard=False,
        num_cpus=4,  # on two cores with room for the actors of Serve, as ours
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(directory / "r"),
    )
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions

    @ray_serve.deployment(ray_actor_options={"num_cpus": 0})
    @ray_serve.ingress(Noop())
    class NoopDeployment:
        pass

    noop: Any = NoopDeployment
    ray_serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    ray_serve.run(noop.bind(), name="noop", route_prefix="/")
    return f"http://127.0.0.1:{port}/"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    options = parser.parse_args()
    url = start(options.directory)
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.status == 200
    options.ready_file.touch()
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    import ray

    ray.shutdown()


if __name__ == "__main__":
    main()
