"""T-E05: pages that are too large, too slow or no text; over real connections to this machine."""

from __future__ import annotations

import asyncio
import gzip
import resource
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence

import pytest

from searchrl.retrieval.web.extract import best_part, paragraphs
from searchrl.retrieval.web.fetch import AGENT, MAX_BYTES, SECONDS, Fetcher, Page, PageError
from searchrl.retrieval.web.guard import Guard
from searchrl.retrieval.web.robots import Robots

Write = Callable[[bytes], Awaitable[None]]
Answer = Callable[[bytes, Write], Awaitable[None]]


class Site:
    """A server whose answers are written by hand."""

    def __init__(self, answer: Answer) -> None:
        self.heads: list[bytes] = []
        self._answer = answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))

            async def write(data: bytes) -> None:
                writer.write(data)
                await writer.drain()

            await self._answer(self.heads[-1], write)
        except (ConnectionError, asyncio.CancelledError):
            """The client has seen enough, or the test is over."""
        finally:
            writer.close()

    async def fetch(self, path: str = "/", seconds: float = 5.0) -> Page:
        """What a fetcher makes of the site, which it takes for a public one."""
        async with self.fetcher(seconds) as (fetcher, url):
            return await fetcher.fetch(url + path)

    def fetcher(self, seconds: float = 5.0) -> _Open:
        return _Open(self, seconds)


class _Open:
    def __init__(self, site: Site, seconds: float) -> None:
        self._site, self._seconds = site, seconds

    async def __aenter__(self) -> tuple[Fetcher, str]:
        self._server = await asyncio.start_server(self._site._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]

        async def resolve(host: str, port: int) -> Sequence[str]:
            return ["127.0.0.1"]

        guard = Guard(resolve, lambda address: True, frozenset({port}))
        return Fetcher(guard, self._seconds), f"http://site.test:{port}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()


def says(body: bytes, kind: str = "text/html", status: str = "200 OK", *headers: str) -> Answer:
    async def answer(head: bytes, write: Write) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers, "Connection: close"]
        await write("\r\n".join([*lines, "", ""]).encode() + body)

    return answer


def refused(answer: Answer, seconds: float = 5.0) -> PageError:
    with pytest.raises(PageError) as caught:
        asyncio.run(Site(answer).fetch(seconds=seconds))
    return caught.value


def peak() -> int:
    """The most memory this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def endless(head: str, piece: bytes, pause: float = 0.0) -> Answer:
    async def answer(_: bytes, write: Write) -> None:
        await write(f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{head}\r\n".encode())
        while True:
            await write(piece)
            await asyncio.sleep(pause)

    return answer


def test_T_E05_a_bomb_an_endless_page_and_a_trickle_are_stopped() -> None:
    packed = zlib.compressobj(wbits=31)
    # Two gigabytes of zeros, as the deflated pieces that they repeat in.
    first = packed.compress(bytes(1 << 20)) + packed.flush(zlib.Z_FULL_FLUSH)
    again = packed.compress(bytes(1 << 20)) + packed.flush(zlib.Z_FULL_FLUSH)

    async def bomb(head: bytes, write: Write) -> None:
        await write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n")
        await write(first)
        for _ in range(32):
            await write(again * 64)

    asyncio.run(Site(says(b"warm")).fetch())
    assert (MAX_BYTES, SECONDS) == (2 << 20, 15.0)
    before = peak()
    assert "larger than" in str(refused(bomb))
    assert "larger than" in str(refused(endless("", b"x" * 65_536)))
    trickle = refused(endless("", b"x", pause=0.01), seconds=0.1)
    assert "took longer than 0.1 s" in str(trickle)
    assert not trickle.lasting
    assert peak() - before < 20 << 20


def test_a_page_of_the_largest_size_is_read() -> None:
    page = asyncio.run(Site(says(gzip.compress(b"x" * MAX_BYTES), "text/html", "200 OK",
                                 "Content-Encoding: gzip")).fetch())  # fmt: skip
    assert len(page.body) == MAX_BYTES
    raw = zlib.compress(b"short")
    page = asyncio.run(Site(says(raw, "text/plain; charset=latin-1", "200 OK",
                                 "Content-Encoding: deflate")).fetch())  # fmt: skip
    assert (page.body, page.kind, page.encoding) == (b"short", "text/plain", "latin-1")


@pytest.mark.parametrize(
    ("answer", "why", "lasting"),
    [
        (says(b"", "application/pdf"), "is application/pdf, not text", True),
        (says(b"", "image/png"), "not text", True),
        (says(b"", ""), "is of no kind", True),
        (says(b"x", "text/html", "200 OK", "Content-Encoding: br"), "packed as br", True),
        (
            says(b"x" * 9, "text/html", "200 OK", "Content-Encoding: gzip"),
            "incorrect header",
            False,
        ),
        (
            says(gzip.compress(b"x" * 99)[:-9], "text/html", "200 OK", "Content-Encoding: gzip"),
            "cut short",
            False,
        ),
        (says(b"", "text/html", "404 Not Found"), "answers 404", True),
        (says(b"", "text/html", "503 Busy"), "answers 503", False),
        (says(b"", "text/html", "429 Slow"), "answers 429", False),
        (says(b"", "text/html", "302 Found"), "answers 302", False),
        (says(b"x", "text/html", "200 OK", "Content-Length: 9"), "RemoteProtocolError", False),
    ],
)
def test_what_is_no_page_is_an_error_that_says_why(answer: Answer, why: str, lasting: bool) -> None:
    error = refused(answer)
    assert why in str(error)
    assert error.lasting is lasting


def test_what_is_sent_is_honest_and_little() -> None:
    site = Site(says(b"x"))
    asyncio.run(site.fetch("/a?b=c"))
    lines = site.heads[0].decode().split("\r\n")
    assert lines[0] == "GET /a?b=c HTTP/1.1"
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    assert headers["host"].startswith("site.test:")
    assert headers["user-agent"] == AGENT
    assert set(headers) == {"host", "user-agent", "accept", "accept-encoding", "connection"}


RULES = b"User-agent: *\nDisallow: /private\n\nUser-agent: searchrl\nDisallow: /ours\n"


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        (says(RULES, "text/plain"), ["/", "/private"]),
        (says(b"", "text/html", "404 Not Found"), ["/", "/private", "/ours"]),
    ],
)
def test_a_sites_rules_for_robots_are_asked_once_and_kept(
    rules: Answer, allowed: list[str]
) -> None:
    site = Site(rules)

    async def main() -> list[str]:
        async with site.fetcher() as (fetcher, url):
            robots = Robots(fetcher)
            paths = ("/", "/private", "/ours")
            found = await asyncio.gather(*(robots.allow(url + path) for path in paths))
            return [path for path, allow in zip(paths, found, strict=True) if allow]

    assert asyncio.run(main()) == allowed
    assert len(site.heads) == 1


def test_without_rules_for_now_a_page_is_not_read() -> None:
    async def main() -> None:
        async with Site(says(b"", "text/plain", "503 Busy")).fetcher() as (fetcher, url):
            with pytest.raises(PageError, match="503"):
                await Robots(fetcher).allow(url + "/")

    asyncio.run(main())


HTML = """<!doctype html><html><head><title>Title</title><script>var a = "script";</script></head>
<body><nav><p>Menu of the site</p></nav><div class="x">Loose text here<p>A <b>bo</b>ld claim,
over two&nbsp;lines.</p>tail of it</div><ul><li><a href="/a">only links here</a></li>
<li>See <a href="/b">this</a> for more on it</li></ul><table><tr><td>Cell one</td><td>Cell two</td>
</tr></table><form><p>Sign up now</p></form>line one<br>line two
<footer><p>All rights reserved</p></footer><style>p { color: red }</style></body></html>"""


def html(text: str | bytes, encoding: str | None = None) -> Page:
    body = text.encode() if isinstance(text, str) else text
    return Page("http://e.test", "text/html", body, encoding)


def test_paragraphs_of_a_page_without_what_surrounds_them() -> None:
    assert paragraphs(html(HTML)) == [
        "Loose text here",
        "A bold claim, over two lines.",
        "tail of it",
        "See this for more on it",
        "Cell one",
        "Cell two",
        "line one",
        "line two",
    ]
    main = "<p>not this one</p><main><p>but this one</p></main>"
    assert paragraphs(html(main)) == ["but this one"]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (html("<p>café au lait".encode("latin-1"), "latin-1"), ["café au lait"]),
        (html('<meta charset="latin-1"><p>café au lait'.encode("latin-1")), ["café au lait"]),
        (html("<p>café au lait", "no such encoding"), ["café au lait"]),
        (html(b"<p>caf\xe9 au lait"), ["caf\ufffd au lait"]),
        (html("<p>a\x1eb \x02c\x03 d"), ["ab c d"]),
        (html(""), []),
        (html("<" * 50_000), []),
        (html("<div>" * 20_000 + "deep down" + "</div>" * 20_000), ["deep down"]),
        (
            html("<p title='a > b' data-x=\"<p>\">one two</p >3 < 4 &lt;p&gt;"),
            ["one two", "3 < 4 <p>"],
        ),
        (html('<p class=x">one two<P>three four'), ["one two", "three four"]),
        (html("one two<!-- never closed <p>three four"), ["one two"]),
        (
            Page("u", "text/plain", b"one two\nthree\n\n \nfour five"),
            ["one two three", "four five"],
        ),
    ],
)
def test_pages_of_every_kind(page: Page, expected: list[str]) -> None:
    assert paragraphs(page) == expected


HOSTILE = ("<a ", "<!--", '<a "<a" ', "<nav>", "</", "<b a='", "&#", "<b id=1><p>", "<p>a b ")


def test_no_page_takes_long() -> None:
    """Eight times the page, about eight times the work, and not sixty-four."""

    def seconds(size: int, piece: str) -> float:
        page = html(piece * (size // len(piece)))
        started = time.process_time()
        best_part(paragraphs(page), "a b", 2_000)
        return time.process_time() - started

    slow = [
        piece for piece in HOSTILE if seconds(1 << 15, piece) > 0.1 + 24 * seconds(1 << 12, piece)
    ]
    assert slow == []


def test_the_part_that_says_most_of_what_is_wanted() -> None:
    found = ["Nothing of it.", "Chur is a town.", "It lies at the Rhine.", "More of nothing."]
    assert best_part(found, "Where does Chur lie, at the Rhine?", 40) == "\n".join(found[1:3])
    assert best_part(found, "Rhine", 30) == found[2]
    assert best_part(["word " * 100], "word", 20) == "word word word word "
    assert best_part([], "word", 20) == ""
