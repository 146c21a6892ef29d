"""Ports for servers that keep theirs."""

import socket
from pathlib import Path

import pytest

from serve import ports
from serve.installation import DataDir, DataDirUnusableError
from serve.ports import PortInUseError, ServerUnreachableError, free_port, free_ports, require_free, require_reachable


def test_the_system_hands_out_none_of_them_by_itself() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    found = free_ports(50)
    assert len(set(found)) == 50
    assert not [port for port in found if low <= port <= high]


def test_where_only_the_systems_are_left_one_of_those_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_beside_ephemeral", list)
    assert len(set(free_ports(3))) == 3


def test_a_port_in_use_is_refused_with_a_way_out() -> None:
    port = free_port()
    assert require_free(port, "HTTP") == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(PortInUseError, match="choose another port"):
            require_free(port, "HTTP")


def test_a_server_that_nobody_runs_is_named_by_its_setting_and_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        require_reachable("TENANTRY_NATS_URL", f"nats://me:secret@127.0.0.1:1,nats://127.0.0.1:{port}", 4222)
    with pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:1 .*TENANTRY_VALKEY_URL") as error:
        require_reachable("TENANTRY_VALKEY_URL", "redis://:secret@127.0.0.1:1/0", 6379)
    assert "secret" not in str(error.value)


def test_a_data_directory_that_can_not_be_written_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataDirUnusableError, match=r"can't be written to .*--data-dir"),
        DataDir(tmp_path / "file" / "data").locked(),
    ):
        raise AssertionError("nothing can be made below a file")
