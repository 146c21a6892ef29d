"""Server-side request forgery: what no tenant, and no model that was talked into it, may make a tool call.

The corpus of URLs that lead inside, each as it is written in the wild, and names that resolve to inside.
"""

import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from actors.tools.adapter import ToolCall, ToolContext
from actors.tools.config import HttpConfig, ToolConfigBuilder
from actors.tools.egress import Egress, EgressRefusedError, is_public
from actors.tools.errors import ToolError, ToolUnavailableError
from actors.tools.http import HttpTool

CONTEXT = ToolContext("acme", "call-1")
PUBLIC = "93.184.215.14"

# URL -> why it is dangerous.
CORPUS = {
    "http://127.0.0.1/": "loopback",
    "http://127.1/": "loopback, short form",
    "http://127.0.1/": "loopback, short form",
    "http://127.255.255.254/": "all of 127/8 is loopback",
    "http://2130706433/": "127.0.0.1 as one number",
    "http://0x7f000001/": "as one hexadecimal number",
    "http://017700000001/": "as one octal number",
    "http://0177.0.0.1/": "octal part",
    "http://0177.0.0.01/": "octal parts",
    "http://0x7f.0.0.1/": "hexadecimal part",
    "http://0x7f.0x0.0x0.0x1/": "hexadecimal parts",
    "http://127.0.0.1./": "trailing dot",
    "http://127%2e0%2e0%2e1/": "percent-encoded dots",
    "http://%31%32%37.0.0.1/": "percent-encoded digits",
    "http://127。0。0。1/": "ideographic full stops",
    "http://①②⑦.⓪.⓪.①/": "circled digits",
    "http://１２７.0.0.1/": "full-width digits",  # noqa: RUF001
    "http://0.0.0.0/": "this host",
    "http://0/": "this host, short",
    "http://0x0/": "this host, hexadecimal",
    "http://00000.0.0.0/": "this host, octal",
    "http://10.0.0.1/": "private",
    "http://172.16.0.1/": "private",
    "http://172.31.255.255/": "private",
    "http://192.168.0.1/": "private",
    "http://3232235777/": "192.168.1.1 as one number",
    "http://100.64.0.1/": "carrier-grade NAT",
    "http://169.254.169.254/latest/meta-data/": "cloud metadata",
    "http://0xa9fea9fe/": "cloud metadata, hexadecimal",
    "http://2852039166/": "cloud metadata, as one number",
    "http://0251.0376.0251.0376/": "cloud metadata, octal",
    "http://169.254.170.2/": "container credentials",
    "http://198.18.0.1/": "benchmarking",
    "http://192.0.0.192/": "Oracle's metadata",
    "http://100.100.100.200/": "Alibaba's metadata",
    "http://192.88.99.1/": "6to4 relay",
    "http://224.0.0.1/": "multicast",
    "http://240.0.0.1/": "reserved",
    "http://255.255.255.255/": "broadcast",
    "http://[::1]/": "loopback",
    "http://[::]/": "this host",
    "http://[0:0:0:0:0:0:0:1]/": "loopback, written out",
    "http://[::ffff:127.0.0.1]/": "IPv4-mapped",
    "http://[::ffff:7f00:1]/": "IPv4-mapped, hexadecimal",
    "http://[::ffff:169.254.169.254]/": "IPv4-mapped metadata",
    "http://[::127.0.0.1]/": "IPv4-compatible",
    "http://[64:ff9b::7f00:1]/": "NAT64",
    "http://[64:ff9b:1::1]/": "local NAT64",
    "http://[2002:7f00:1::]/": "6to4",
    "http://[2001:0:7f00:1::]/": "Teredo",
    "http://[2001:db8::1]/": "documentation",
    "http://[fe80::1]/": "link-local",
    "http://[fe80::1%25eth0]/": "link-local with a zone",
    "http://[fec0::1]/": "site-local",
    "http://[fc00::1]/": "unique local",
    "http://[fd00:ec2::254]/": "Amazon's metadata over IPv6",
    "http://[ff02::1]/": "multicast",
    "http://[5f00::1]/": "segment routing",
    "http://[3fff::1]/": "documentation",
    "http://localhost/": "a local name",
    "http://LOCALHOST/": "in capitals",
    "http://localhost./": "with its dot",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/": "in circled letters",
    "http://sub.localhost/": "below localhost",
    "http://metadata.google.internal/computeMetadata/v1/": "Google's metadata",
    "http://metadata.google.internal./": "with its dot",
    "http://kubernetes.default.svc.cluster.local/": "inside a cluster",
    "http://valkey/": "a name without a dot",
    "http://router.lan/": "a home network",
    "http://box.home.arpa/": "a home network",
    "http://user@127.0.0.1/": "a user before the host",
    "http://example.com@127.0.0.1/": "the host is what comes after the @",
    "http://example.com:80@127.0.0.1/": "the same with a port",
    "http://user:password@example.com/": "a password in a URL",
    "http://@example.com/": "an empty user",
    "http://127.0.0.1#@example.com/": "the host is what comes before the #",
    "http://example.com\\@127.0.0.1/": "a backslash, which some parsers take for a slash",
    "http://example.com\t.internal/": "a tab, which some parsers drop",
    "http://exa\nmple.com/": "a line break",
    "http://exam ple.com/": "a space",
    "\x00http://example.com/": "a zero byte",
    "https://127.0.0.1:443/": "TLS changes nothing",
    "http://example.com:22/": "another service's port",
    "http://example.com:6379/": "Valkey's port",
    "http://example.com:0/": "no port",
    "http://example.com:99999/": "no port at all",
    "gopher://example.com:70/_": "another protocol",
    "file:///etc/passwd": "a file",
    "ftp://example.com/": "another protocol",
    "dict://example.com:11211/": "another protocol",
    "ldap://example.com/": "another protocol",
    "ws://example.com/": "another protocol",
    "unix:///var/run/docker.sock": "a socket",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/": "a socket",
    "data:text/plain,x": "no host",
    "jar:http://example.com!/": "another protocol",
    "//example.com/": "no scheme",
    "example.com": "no URL",
    "http://": "no host",
    "http:///etc/passwd": "no host",
    "http://[::1": "no URL",
    "": "nothing",
}


class Resolver(AbstractResolver):
    """Answers what it is told, one list of addresses per question; counts the questions."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(hostname=host, host=address, port=port, family=_family(address), proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        pass


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Inside:
    """A server that only we may reach. Whatever arrives here got through."""

    def __init__(self, port: int, hits: list[str]) -> None:
        self.port, self.hits = port, hits


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    hits: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        hits.append(request.headers["host"])
        if target := request.query.get("to"):
            return web.Response(status=int(request.query.get("status", "302")), headers={"location": target})
        return web.json_response({"host": request.headers["host"], "secret": "inside"})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Inside(runner.addresses[0][1], hits)
    await runner.cleanup()


def http_config(**settings: Any) -> HttpConfig:
    return ToolConfigBuilder(HttpConfig, "web").set(**settings).build()


async def get(tool: HttpTool, url: str) -> Any:
    try:
        return (await tool.execute(ToolCall("web", {"url": url}, "key-1"), CONTEXT)).output
    finally:
        await tool.close()


@pytest.mark.parametrize("url", CORPUS)
def test_a_url_that_leads_inside_is_refused_before_anything_is_resolved(url: str) -> None:
    resolver = Resolver(["127.0.0.1"])
    egress = Egress("web", resolver=resolver)
    with pytest.raises(EgressRefusedError):
        egress.url(url)
    assert resolver.asked == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "https://EXAMPLE.com:443/a?b=c#d",
        f"http://{PUBLIC}/",
        "http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/",
        "https://bücher.example.com/",
        "http://127.0.0.1.example.com/",
        "http://example.com/?next=http://127.0.0.1/",
    ],
)
def test_what_is_public_may_be_called(url: str) -> None:
    assert Egress("web").url(url).host


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["fe80::1"],
        ["fd00:ec2::254"],
        [PUBLIC, "127.0.0.1"],
        ["0.0.0.0"],
    ],
)
async def test_a_name_that_resolves_to_inside_is_refused(addresses: list[str], inside: Inside) -> None:
    """Also where only one of its addresses does."""
    tool = HttpTool(http_config(allow_ports=[inside.port]), Resolver(addresses))
    with pytest.raises(EgressRefusedError, match="not public"):
        await get(tool, f"http://rebind.example.com:{inside.port}/")
    assert inside.hits == []


async def test_an_answer_that_changes_after_the_check_changes_nothing(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when it is checked, inside when it is used. It is used exactly as it was checked."""
    connected: list[str] = []

    def open_socket(self: Egress, info: Any) -> socket.socket:
        connected.append(info[4][0])
        raise ConnectionRefusedError("nobody is there in a test")

    monkeypatch.setattr(Egress, "_open_socket", open_socket)
    resolver = Resolver([PUBLIC], ["127.0.0.1"])
    tool = HttpTool(http_config(allow_ports=[inside.port]), resolver)
    with pytest.raises(ToolUnavailableError):
        await tool.execute(ToolCall("web", {"url": f"http://rebind.example.com:{inside.port}/"}, "k"), CONTEXT)
    assert (connected, resolver.asked) == ([PUBLIC], 1)
    monkeypatch.undo()
    with pytest.raises(EgressRefusedError):
        await get(tool, f"http://rebind.example.com:{inside.port}/")
    assert inside.hits == []


async def test_the_socket_is_checked_too_whatever_the_resolver_check_let_through(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Egress, "check_addresses", lambda *_: None)
    tool = HttpTool(http_config(allow_ports=[inside.port]), Resolver(["127.0.0.1"]))
    with pytest.raises(EgressRefusedError):
        await get(tool, f"http://rebind.example.com:{inside.port}/")
    assert inside.hits == []


async def test_the_host_header_keeps_the_name_although_the_address_is_connected_to(inside: Inside) -> None:
    name = f"api.example.com:{inside.port}"
    tool = HttpTool(http_config(allow_private=[name]), Resolver(["127.0.0.1"]))
    assert (await get(tool, f"http://{name}/"))["json"]["host"] == name


async def test_what_the_operator_opens_is_open_and_nothing_beside_it(inside: Inside) -> None:
    config = http_config(allow_private=[f"127.0.0.1:{inside.port}"])
    assert (await get(HttpTool(config), f"http://127.0.0.1:{inside.port}/"))["status"] == 200
    for url in (f"http://localhost:{inside.port}/", "http://127.0.0.1/", f"http://127.0.0.2:{inside.port}/"):
        with pytest.raises(EgressRefusedError):
            await get(HttpTool(config), url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/",
        "http://2130706433/",
        "//127.0.0.1/x",
        "http://localhost:{port}/",
        "http://[::1]:{port}/",
        "file:///etc/passwd",
        "http://a@127.0.0.1:{port}/",
        "http://other.example.com:{port}/",
    ],
)
async def test_a_redirect_to_inside_is_not_followed(inside: Inside, status: int, target: str) -> None:
    tool = HttpTool(
        http_config(allow_private=[f"127.0.0.1:{inside.port}"], allow_ports=[inside.port]), Resolver(["10.0.0.1"])
    )
    to = target.format(port=inside.port)
    with pytest.raises(EgressRefusedError):
        await get(tool, f"http://127.0.0.1:{inside.port}/?status={status}&to={to}")
    assert len(inside.hits) == 1


async def test_redirects_within_what_is_open_are_followed_up_to_a_limit(inside: Inside) -> None:
    base = f"http://127.0.0.1:{inside.port}"
    config = http_config(allow_private=[f"127.0.0.1:{inside.port}"], redirects_max=2)
    assert (await get(HttpTool(config), f"{base}/?to=/done"))["status"] == 200
    with pytest.raises(ToolError, match="more than 2 redirects"):
        await get(HttpTool(config), f"{base}/a?to={base}/b%3Fto={base}/c%253Fto={base}/d%25253Fto={base}/e")


async def test_only_listed_hosts_where_hosts_are_listed() -> None:
    egress = Egress("web", allow_hosts=["api.example.com", "*.partner.example"])
    assert egress.url("https://api.example.com/")
    assert egress.url("https://eu.partner.example/")
    for url in (
        "https://example.com/",
        "https://partner.example/",
        "https://evilpartner.example/",
        "https://api.example.com.evil.example/",
    ):
        with pytest.raises(EgressRefusedError, match="allow_hosts"):
            egress.url(url)


async def test_what_a_name_resolved_to_is_not_told(inside: Inside) -> None:
    """It would let a tenant map the operator's network."""
    tool = HttpTool(http_config(), Resolver(["10.77.66.55"]))
    with pytest.raises(EgressRefusedError) as refusal:
        await get(tool, "http://who.example.com/")
    assert "10.77.66.55" not in str(refusal.value)


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_that_python_calls_private_is_public(address: ipaddress.IPv4Address) -> None:
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert not is_public(address)


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_that_python_calls_private_is_public(address: ipaddress.IPv6Address) -> None:
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_hidden_in_an_ipv6_one_is_never_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for hidden in (0xFFFF << 32 | number, number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80):
        assert not is_public(ipaddress.IPv6Address(hidden))
