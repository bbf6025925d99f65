"""A page from the web, within limits of time, size and kind, and only from where a guard lets it.

Redirects are followed by hand, each hop checked like the first. A packed body is unpacked piece by
piece, so that a small one cannot become a large one; no cookies, no proxies of the environment, no
connection that is kept for another host.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from searchrl import __version__
from searchrl.retrieval.web.guard import BlockedError, Guard, Pinned
from searchrl.transport.tls import tls_context

if TYPE_CHECKING:
    import httpx2

AGENT = f"searchrl/{__version__}"
MAX_BYTES = 2 << 20
"""Of a page, unpacked."""
SECONDS = 15.0
"""For a page, its redirects included."""
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({400, 401, 402, 403, 404, 405, 406, 410, 451})
"""Answers that would be the same tomorrow."""
_STEP = 1 << 16


class PageError(Exception):
    """A page that could not be had; the text says why.

    Attributes:
        lasting: whether it would be the same another time.
    """

    def __init__(self, why: str, lasting: bool) -> None:
        super().__init__(why)
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class Page:
    """What an address answered.

    Attributes:
        url: of the last hop.
        kind: its media type, as in ``text/html``.
        body: unpacked.
        encoding: that the answer names for its text.
    """

    url: str
    kind: str
    body: bytes
    encoding: str | None = None


class Fetcher:
    """Fetches pages.

    Args:
        guard: decides what may be fetched.
        seconds: for one page.
        transport: stands in for the network in tests.
    """

    def __init__(
        self,
        guard: Guard | None = None,
        seconds: float = SECONDS,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._guard = guard or Guard()
        self._seconds = seconds
        self._transport = transport

    async def fetch(self, url: str) -> Page:
        """The page at an address.

        Raises:
            PageError: it may not or could not be fetched, or is no text.
        """
        import httpx2

        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(url)
        except BlockedError as error:
            raise PageError(str(error), lasting=True) from error
        except TimeoutError as error:
            raise PageError(f"took longer than {self._seconds:g} s", lasting=False) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise PageError(f"{type(error).__name__} {error}".rstrip(), lasting=False) from error

    async def _follow(self, url: str) -> Page:
        import httpx2

        async with httpx2.AsyncClient(
            timeout=httpx2.Timeout(self._seconds),
            # A kept connection would be found again by its address, under another host's name.
            limits=httpx2.Limits(max_keepalive_connections=0),
            trust_env=False,
            verify=tls_context(),
            transport=self._transport,
        ) as client:
            for _ in range(MAX_REDIRECTS + 1):
                found = await self._hop(client, await self._guard.admit(url))
                if isinstance(found, Page):
                    return found
                url = found
        raise PageError(f"more than {MAX_REDIRECTS} redirects", lasting=True)

    async def _hop(self, client: httpx2.AsyncClient, pinned: Pinned) -> Page | str:
        """The page, or the address that it sends us to."""
        headers = {
            "Host": pinned.host_header,
            "User-Agent": AGENT,
            "Accept": "text/html, application/xhtml+xml, text/plain;q=0.9, text/*;q=0.5",
            "Accept-Encoding": "gzip, deflate",
        }
        async with client.stream(
            "GET",
            pinned.pinned_url,
            headers=headers,
            extensions={"sni_hostname": pinned.host},
            timeout=client.timeout,
        ) as response:
            status = response.status_code
            if status in _REDIRECTS and "location" in response.headers:
                return str(pinned.url.join(response.headers["location"]))
            if status != 200:
                raise PageError(f"answers {status}", lasting=status in _GONE)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if not kind.startswith("text/") and kind != "application/xhtml+xml":
                raise PageError(f"is {kind or 'of no kind'}, not text", lasting=True)
            packing = response.headers.get("content-encoding", "identity").strip().lower()
            body = await _read(response.aiter_raw(_STEP), packing)
            return Page(str(pinned.url), kind, body, response.charset_encoding)


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes: ...


async def _read(pieces: AsyncIterator[bytes], packing: str) -> bytes:
    """A body, unpacked; never more than the limit is in memory.

    Raises:
        PageError: it is too large, packed in an unknown way, or damaged.
    """
    if packing == "identity":
        unpacker: _Unpacker | None = None
    elif packing in ("gzip", "x-gzip", "deflate"):
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either kind of header
    else:
        raise PageError(f"is packed as {packing}", lasting=True)
    body = bytearray()
    async for piece in pieces:
        try:
            _add(body, piece, unpacker)
        except zlib.error as error:
            raise PageError(f"cannot be unpacked: {error}", lasting=False) from error
        if len(body) > MAX_BYTES:
            raise PageError(f"is larger than {MAX_BYTES} bytes", lasting=True)
    if unpacker is not None and not unpacker.eof:
        raise PageError("cannot be unpacked: it is cut short", lasting=False)
    return bytes(body)


def _add(body: bytearray, piece: bytes, unpacker: _Unpacker | None) -> None:
    if unpacker is None:
        body += piece
        return
    while piece and len(body) <= MAX_BYTES:
        body += unpacker.decompress(piece, _STEP)
        piece = unpacker.unconsumed_tail
