"""Ports for servers that keep theirs."""

import socket
from pathlib import Path

import pytest

from serve import ports
from serve.ports import PortInUseError, free_port, free_ports, require_free


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
