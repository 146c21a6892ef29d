"""When a server of ours counts as ready."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve.local_servers import LocalServer, ServerFailedError, ServerSpec, answers_ping, listens
from serve.ports import free_port

LOADING = b"+OK\r\n-LOADING Valkey is loading the dataset in memory\r\n"
PONG = b"+OK\r\n+PONG\r\n"


@contextmanager
def answering(answers: Sequence[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """The port of a server that answers each connection with the next of these; what it was asked is collected."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    asked.append(connection.recv(4096))
                    connection.sendall(answer)

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        yield server.getsockname()[1], asked
        serving.join(60)


def _valkey(port: int, directory: Path) -> LocalServer:
    return LocalServer(ServerSpec("valkey", [], port, directory / "valkey.log", probe=answers_ping("s3cret")))


def test_a_valkey_that_still_loads_its_data_is_not_ready(tmp_path: Path) -> None:
    """It takes connections and refuses every command meanwhile; however long that takes, it is waited for."""
    with answering([LOADING, LOADING, PONG]) as (port, asked):
        _valkey(port, tmp_path).wait_ready(timeout_s=0)
    assert len(asked) == 3
    assert b"s3cret" in asked[0]


def test_what_refuses_the_password_or_says_nothing_is_not_ready(tmp_path: Path) -> None:
    """The error names the server, its port, and shows the end of its log."""
    (tmp_path / "valkey.log").write_text("bad directive\n")
    refused = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n-NOAUTH Authentication required.\r\n"
    for answer in (refused, b""):
        said = r"valkey is not ready on port \d+(.|\n)*bad directive"
        with answering([answer]) as (port, _), pytest.raises(ServerFailedError, match=said):
            _valkey(port, tmp_path).wait_ready(timeout_s=0)


def test_a_port_where_nobody_listens_is_not_ready() -> None:
    assert listens(free_port()) == "none"
    assert answers_ping("s3cret")(free_port()) == "none"
