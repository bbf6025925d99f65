"""The little of HTTP that a search server needs, over the ASGI interface.

Every request passes the same gate, in this order: its Host header (so that a web page cannot reach
a server on this machine by another name), its API key, its path, its method. A body is read only
afterwards, up to a limit of size and time. A route says itself whether it is open to everybody, and
none is unless it says so.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from searchrl.serving.settings import (
    MAX_BODY,
    MAX_SECONDS,
    MIN_SECONDS,
    TIMEOUT_HEADER,
    host_name,
)
from searchrl.serving.wire import Refusal, encode

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
JSON = "application/json"
_seconds_decoder = msgspec.json.Decoder(Annotated[float, Meta(ge=MIN_SECONDS, le=MAX_SECONDS)])


class ClientGoneError(Exception):
    """The client has hung up; nobody waits for an answer."""


class RefusedError(Exception):
    """A request that is answered with an error status.

    Attributes:
        status: the HTTP status.
        detail: the reason, in one line.
        headers: what the status asks for besides.
    """

    def __init__(self, status: int, detail: str, headers: Headers = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back to a client."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Headers = ()

    @classmethod
    def of(cls, answer: Struct, status: int = 200) -> Reply:
        """A reply that holds one answer as JSON."""
        return cls(status, encode(answer))

    async def send(self, send: Send) -> None:
        """Hand the reply to the server."""
        head = (
            (b"content-type", self.content_type.encode()),
            (b"content-length", str(len(self.body)).encode()),
            *self.headers,
        )
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        await send({"type": "http.response.body", "body": self.body})


class Request:
    """One request, its body still unread."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.started = asyncio.get_running_loop().time()
        self._receive = receive

    def seconds_left(self, default: float) -> float:
        """Time until the deadline that the client named, or the default one.

        Raises:
            RefusedError: the header is not a number in its range.
        """
        text = self.headers.get(TIMEOUT_HEADER.encode())
        try:
            seconds = default if text is None else _seconds_decoder.decode(text)
        except ValueError:
            span = f"{MIN_SECONDS:g} to {MAX_SECONDS:g}"
            raise RefusedError(422, f"header {TIMEOUT_HEADER}: expected seconds, {span}") from None
        return seconds - (asyncio.get_running_loop().time() - self.started)

    async def json_body(self, seconds: float) -> bytes:
        """Read a body that says it is JSON.

        Raises:
            RefusedError: another content type or a packed body (415), too large (413), or not
                there in time (408).
            ClientGoneError: the client hung up on the way.
        """
        content_type = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type != JSON.encode():
            raise RefusedError(415, f"header content-type: expected {JSON}")
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise RefusedError(415, "header content-encoding: send the body unpacked")
        if int(self.headers.get(b"content-length", b"0")) > MAX_BODY:
            raise _too_large()
        try:
            async with asyncio.timeout(seconds):
                return await self._body()
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive within {seconds:g} s") from None

    async def _body(self) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > MAX_BODY:
                raise _too_large()
            more = message.get("more_body", False)
        return bytes(body)

    async def disconnected(self) -> None:
        """Return when the client hangs up; for use after the body."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.

    Attributes:
        method: the only method of this path.
        path: the path, exactly.
        handler: answers a request.
        summary: one line for the OpenAPI document.
        answers: what the body of an answer may hold, by status; nothing where it is no JSON of
            a type of ``wire``.
        body: what a request's body holds, for one that has a body.
        open: answered without the API key.
        content_type: of the answers.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Reply]]
    summary: str
    answers: Mapping[int, Sequence[type[Struct]]]
    body: type[Struct] | None = None
    open: bool = False
    content_type: str = JSON


class Gate:
    """Finds the route of a request that may pass.

    Args:
        routes: all operations.
        hosts: names that a Host header may hold; empty for any.
        key: the API key; ``None`` lets everybody pass.
    """

    def __init__(self, routes: Sequence[Route], hosts: Sequence[str], key: str | None) -> None:
        self._routes = {route.path: route for route in routes}
        self._hosts = frozenset(hosts)
        self._key = None if key is None else f"Bearer {key}".encode()

    def admit(self, request: Request) -> Route:
        """The route of the request.

        Raises:
            RefusedError: another host (421), no key (401), a wrong one (403), no such path (404),
                or another method (405).
        """
        self._check_host(request.headers.get(b"host", b""))
        route = self._routes.get(request.path)
        if route is None or not route.open:
            self._check_key(request.headers.get(b"authorization"))
        if route is None:
            raise RefusedError(404, f"no such path; there are {', '.join(self._routes)}")
        if request.method != route.method:
            allow = ((b"allow", route.method.encode()),)
            raise RefusedError(405, f"{route.path} takes {route.method}", allow)
        return route

    def _check_host(self, header: bytes) -> None:
        if self._hosts and host_name(header.decode("latin-1")) not in self._hosts:
            raise RefusedError(421, "header host: not a name of this server")

    def _check_key(self, header: bytes | None) -> None:
        if self._key is None:
            return
        if header is None:
            challenge = ((b"www-authenticate", b"Bearer"),)
            raise RefusedError(401, "header authorization: Bearer and the API key", challenge)
        if not hmac.compare_digest(header, self._key):
            raise RefusedError(403, "header authorization: not the API key of this server")


def refusal(error: RefusedError) -> Reply:
    """The reply that an error asks for."""
    return Reply(error.status, encode(Refusal(error.detail)), headers=error.headers)


def _too_large() -> RefusedError:
    return RefusedError(413, f"the body is larger than {MAX_BODY} bytes; send fewer queries")
