"""T-E04: what may be fetched from the web, and what may not, whatever it calls itself."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import httpx2
import pytest

from searchrl.retrieval.web.fetch import MAX_REDIRECTS, Fetcher, Page, PageError
from searchrl.retrieval.web.guard import BlockedError, Guard, Pinned, is_public

HOSTS = {
    "example.org": ["93.184.216.34"],
    "v6.example.org": ["2606:2800:220:1:248:1893:25c8:1946"],
    "both.example.org": ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"],
    "xn--bcher-kva.example": ["93.184.216.34"],
    "localhost": ["127.0.0.1", "::1"],
    "internal.test": ["10.1.2.3"],
    "mixed.test": ["93.184.216.34", "10.1.2.3"],
    "mixed6.test": ["2606:2800:220:1:248:1893:25c8:1946", "::1"],
    "metadata.google.internal": ["169.254.169.254"],
    "scoped.test": ["fe80::1%eth0"],
    "empty.test": [],
    "odd.test": ["not an address"],
    "127.0.0.1.nip.io": ["127.0.0.1"],
}


async def resolve(host: str, port: int) -> Sequence[str]:
    """Names from the table; numbers as the C library reads them, octal and hexadecimal included."""
    if host in HOSTS:
        return HOSTS[host]
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        return [socket.inet_ntoa(socket.inet_aton(host))]


def admit(url: str) -> Pinned:
    return asyncio.run(Guard(resolve).admit(url))


BLOCKED = [
    # this machine, in every notation
    *(f"http://{host}/" for host in (
        "127.0.0.1", "127.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1",
        "017700000001", "0", "0.0.0.0", "localhost", "LOCALHOST", "127.0.0.1.nip.io", "localhost.",
        "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "[::127.0.0.1]", "[::7f00:1]", "①②⑦.⓪.⓪.①", "127。0。0。1",
        "\uff11\uff12\uff17.\uff10.\uff10.\uff11",  # full-width digits
    )),
    # its network
    *(f"http://{host}/" for host in (
        "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "0xc0a80001",
        "100.64.0.1", "100.127.255.255", "169.254.1.1", "192.0.0.1", "192.0.2.1", "198.18.0.1",
        "198.51.100.1", "203.0.113.9", "240.0.0.1", "255.255.255.255", "224.0.0.1",
        "239.255.255.250", "[fe80::1]", "[fc00::1]", "[fd12:3456:789a::1]", "[ff02::1]",
        "[2001:db8::1]", "[3fff::1]", "internal.test", "mixed.test", "mixed6.test", "scoped.test",
    )),
    # what clouds answer their own machines at
    *(f"http://{host}/" for host in (
        "169.254.169.254", "0xa9fea9fe", "2852039166", "[fd00:ec2::254]", "100.100.100.200",
        "192.0.0.192", "168.63.129.16", "metadata.google.internal", "[::ffff:169.254.169.254]",
    )),
    # addresses inside addresses
    *(f"http://{host}/" for host in (
        "[64:ff9b::a00:1]", "[64:ff9b:1::a00:1]", "[2002:a00:1::]", "[2002:7f00:1::1]",
        "[2001:0:53aa:64c:0:0:f5ff:fffe]", "[::ffff:0:10.0.0.1]", "[100::1]",
    )),
    # other schemes, ports, and what is no address
    "file:///etc/passwd", "gopher://example.org:70/", "ftp://example.org/", "data:text/html,x",
    "javascript:alert(1)", "ws://example.org/", "//example.org/", "example.org", "", "http://",
    "http:///path", "http://user@example.org/", "http://user:pw@example.org/",
    "http://example.org@127.0.0.1/", "http://127.0.0.1@example.org/", "http://example.org:22/",
    "http://example.org:6379/", "http://example.org:70000/", "http://exa mple.org/",
    "http://empty.test/", "http://odd.test/", "http://nowhere.test/", "http://[::1", "http://\x00/",
]  # fmt: skip
PUBLIC = [
    "http://example.org/", "https://example.org/a?b=c#d", "HTTPS://EXAMPLE.ORG/",
    "http://example.org:80/", "https://example.org:443/", "https://v6.example.org/",
    "https://both.example.org/", "https://bücher.example/", "http://93.184.216.34/",
    "https://[2606:2800:220:1:248:1893:25c8:1946]/",
]  # fmt: skip


def test_T_E04_what_is_not_the_public_web_is_blocked() -> None:
    assert len(BLOCKED) >= 80
    passed = []
    for url in BLOCKED:
        with suppress(BlockedError):
            passed.append((url, admit(url)))
    assert passed == []


def test_T_E04_what_is_passes() -> None:
    assert len(PUBLIC) == 10
    assert {is_public(ipaddress.ip_address(admit(url).address)) for url in PUBLIC} == {True}


def test_the_name_stays_in_the_request_and_the_address_in_the_connection() -> None:
    pinned = admit("https://bücher.example:443/a?b=c")
    assert str(pinned.pinned_url) == "https://93.184.216.34/a?b=c"
    assert (pinned.host, pinned.host_header) == ("xn--bcher-kva.example",) * 2
    six = admit("http://v6.example.org/")
    assert str(six.pinned_url) == "http://[2606:2800:220:1:248:1893:25c8:1946]/"


def page(text: str) -> httpx2.Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield text.encode()

    return httpx2.Response(200, headers={"content-type": "text/plain"}, content=pieces())


def redirecting(*places: str) -> httpx2.MockTransport:
    """Sends from one place to the next, and answers with a page at the last."""
    places_left = list(places)

    def answer(request: httpx2.Request) -> httpx2.Response:
        if places_left:
            return httpx2.Response(302, headers={"location": places_left.pop(0)})
        return page("there")

    return httpx2.MockTransport(answer)


def fetch(url: str, transport: httpx2.AsyncBaseTransport, guard: Guard | None = None) -> Page:
    return asyncio.run(Fetcher(guard or Guard(resolve), transport=transport).fetch(url))


@pytest.mark.parametrize(
    "place",
    ["http://127.0.0.1/", "http://internal.test/", "file:///etc/passwd", "//10.0.0.1/", "//[::1]/",
     "gopher://example.org/", "http://169.254.169.254/latest/meta-data/", "http://a:b@example.org/"],
)  # fmt: skip
def test_T_E04_every_hop_of_a_redirect_is_checked(place: str) -> None:
    for chain in ([place], ["/next", "https://v6.example.org/", place]):
        with pytest.raises(PageError) as caught:
            fetch("http://example.org/", redirecting(*chain))
        assert caught.value.lasting


def test_redirects_that_stay_outside_are_followed_and_counted() -> None:
    found = fetch("http://example.org/a/b", redirecting("../c", "https://v6.example.org/d"))
    assert (found.url, found.body) == ("https://v6.example.org/d", b"there")
    fetch("http://example.org/", redirecting(*["/again"] * MAX_REDIRECTS))
    with pytest.raises(PageError, match="more than 5 redirects"):
        fetch("http://example.org/", redirecting(*["/again"] * (MAX_REDIRECTS + 1)))


def test_T_E04_a_name_that_changes_its_mind_is_asked_once() -> None:
    asked: list[str] = []
    connected: list[tuple[str, str, object]] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["93.184.216.34"] if len(asked) == 1 else ["127.0.0.1"]

    def answer(request: httpx2.Request) -> httpx2.Response:
        connected.append(
            (request.url.host, request.headers["host"], request.extensions["sni_hostname"])
        )
        return page("x")

    fetch("https://rebind.test/", httpx2.MockTransport(answer), Guard(rebinding))
    assert asked == ["rebind.test"]
    assert connected == [("93.184.216.34", "rebind.test", "rebind.test")]
    with pytest.raises(PageError, match="not on the public internet"):
        fetch("https://rebind.test/", httpx2.MockTransport(answer), Guard(rebinding))
