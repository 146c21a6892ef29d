"""Where a tool may connect to when the URL comes from a tenant, or from a model: public addresses only.

A name is resolved once, every address it has is checked, and the connection goes to exactly those addresses: an answer
that changes between the check and the connection (DNS rebinding) changes nothing. TLS and the Host header keep the name.
The check stands twice: on the resolver's answer, and on the socket address at the moment of connecting, which no way
of writing an address can get around.

Source: OWASP Server-Side Request Forgery Prevention; the special-purpose registries of IANA (RFC 6890 and its updates).
"""

import ipaddress
import re
import socket
from collections.abc import Collection
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from actors.tools.errors import ToolRefusedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Everything in IPv4 that is not somebody else's public host.
_NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
]
# Of IPv6 only global unicast is open, less what carries an IPv4 address or is set aside in there. What lies outside of
# it (loopback, unique local, link-local, multicast, IPv4-mapped, NAT64) is refused by not being listed.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = [ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
# Names that mean this machine or network, wherever they are resolved.
_LOCAL_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home.arpa", "localdomain", "invalid", "test")
_ENDS_IN_NUMBER = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9a-fA-F]*)$")
_NEVER_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")


def is_public(address: Address) -> bool:
    """Whether the address can be somebody else's host on the Internet. An IPv4 address within IPv6 never is: there is
    no reason to write it so.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    if address.scope_id or address not in _GLOBAL_UNICAST:
        return False
    return not any(address in network for network in _NOT_PUBLIC_V6)


class EgressRefusedError(ToolRefusedError):
    """The URL leads where tools must not go. What the name resolved to is not said: it would map our network."""

    code = "egress_refused"


class _RefusedAddress(PermissionError):
    """An OSError, because that is what an address that can't be used is to whoever connects."""


class _Target:
    """Of the request under way: what may be connected to for it, and whether that was refused."""

    def __init__(self, may_be_private: bool) -> None:
        self.may_be_private = may_be_private
        self.was_refused = False


# Connecting happens in tasks of their own, which inherit the context of the request they are for.
_target: ContextVar[_Target | None] = ContextVar("egress_target", default=None)


class Egress:
    """The rules of one tool, and a connector that keeps them.

    Args:
        allow_hosts: Names, or ``*.example.com`` for all below one; empty: any public host.
        allow_private: ``host:port`` of hosts that the operator opens although they are private, written as in the URL.
        allow_ports: For all others.
        resolver: Replaced in tests only.
    """

    def __init__(
        self,
        tool: str,
        *,
        allow_hosts: Collection[str] = (),
        allow_private: Collection[str] = (),
        allow_ports: Collection[int] = (80, 443),
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._tool, self._allow_hosts = tool, tuple(host.lower() for host in allow_hosts)
        self._allow_private = frozenset(re.sub(r"[\[\]]", "", host.lower()) for host in allow_private)
        self._allow_ports = frozenset(allow_ports)
        self._resolver = resolver

    def connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(
            resolver=_CheckingResolver(self, self._resolver or ThreadedResolver()),
            use_dns_cache=False,
            socket_factory=self._open_socket,
        )

    def url(self, text: str) -> URL:
        """The URL, if it may be called. Raises EgressRefusedError or ToolRefusedError."""
        if _NEVER_IN_URLS.search(text):
            raise self._refusal("a URL holds no spaces, control characters or backslashes")
        if "@" in re.split(r"[/?#]", text.partition("//")[2], maxsplit=1)[0]:
            raise self._refusal("no user or password in a URL")
        try:
            url = URL(text)
            host, port = (url.raw_host or "").lower(), url.port
        except ValueError as error:
            raise self._refusal("not a URL") from error
        self.check(url, host, port)
        return url

    def check(self, url: URL, host: str, port: int | None) -> None:
        if url.scheme not in ("http", "https"):
            raise self._refusal(f"scheme {url.scheme[:20]!r}: http and https are possible")
        if not host or port is None:
            raise self._refusal("a URL needs a host")
        if self._allow_hosts and not any(_matches(host.rstrip("."), pattern) for pattern in self._allow_hosts):
            raise self._refusal(f"host {host[:80]!r} is not one of its allow_hosts")
        if self.may_be_private(host, port):
            return
        if port not in self._allow_ports:
            raise self._refusal(f"port {port} is not one of {sorted(self._allow_ports)}")
        self._check_host(host)

    def _check_host(self, host: str) -> None:
        name = host.rstrip(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            if _ENDS_IN_NUMBER.search(name) or "%" in name or ":" in name:
                raise self._refusal(f"host {host[:80]!r} is no name, and not an address as one writes it") from None
            if "." not in name or any(_matches(name, f"*.{local}") or name == local for local in _LOCAL_NAMES):
                raise self._refusal(f"host {host[:80]!r} is a local name") from None
            return
        if not is_public(address):
            raise self._refusal(f"{host[:80]} is not a public address")

    def may_be_private(self, host: str, port: int) -> bool:
        return f"{host}:{port}" in self._allow_private

    def guard(self, url: URL) -> _Target:
        """To be called in the task that makes the request, right before it."""
        target = _Target(self.may_be_private((url.raw_host or "").lower(), url.port or 0))
        _target.set(target)
        return target

    def check_addresses(self, host: str, port: int, addresses: Collection[str]) -> None:
        """All of them: a name that also leads inside is not trusted at all."""
        if not self.may_be_private(host.lower(), port) and not all(_is_public_text(text) for text in addresses):
            raise self.private(host)

    def private(self, host: str) -> EgressRefusedError:
        return self._refusal(f"host {host[:80]!r} leads to an address that is not public")

    def _open_socket(self, info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, address = info
        target = _target.get()
        assert target is not None, "a request without guard()"
        if not target.may_be_private and not _is_public_text(address[0]):
            target.was_refused = True
            raise _RefusedAddress("not a public address")
        return socket.socket(family, kind, protocol)

    def _refusal(self, reason: str) -> EgressRefusedError:
        return EgressRefusedError(self._tool, f"{self._tool!r} does not call this URL: {reason}")


class _CheckingResolver(AbstractResolver):
    def __init__(self, egress: Egress, inner: AbstractResolver) -> None:
        self._egress, self._inner = egress, inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        self._egress.check_addresses(host, port, [result["host"] for result in found])
        return found

    async def close(self) -> None:
        await self._inner.close()


def _is_public_text(text: str) -> bool:
    try:
        return is_public(ipaddress.ip_address(text))
    except ValueError:
        return False


def _matches(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
