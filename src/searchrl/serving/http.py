"""The little of HTTP that the servers here need, over the ASGI interface: a request, a reply.

A body is read only when a handler asks for it, up to a limit of size and time, and only one that
says it is JSON. What an answer is computed for can leave before it is there, and takes its request
along.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from searchrl.serving.settings import MAX_SECONDS, MIN_SECONDS, TIMEOUT_HEADER

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
JSON = "application/json"
_JSON_BYTES = JSON.encode()
_TIMEOUT_BYTES = TIMEOUT_HEADER.encode()
_UNWATCHED_SECONDS = 0.01
"""An answer that is there within this time never pays for watching its client."""
_seconds_decoder = msgspec.json.Decoder(Annotated[float, Meta(ge=MIN_SECONDS, le=MAX_SECONDS)])
_Answer = TypeVar("_Answer")


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
    def of(cls, answer: Any, status: int = 200, headers: Headers = ()) -> Reply:
        """A reply that holds one answer, a ``Struct`` or plain values, as JSON."""
        return cls(status, encode(answer), headers=headers)

    async def send(self, send: Send) -> None:
        """Hand the reply to the server."""
        head = (
            (b"content-type", self.content_type.encode()),
            (b"content-length", str(len(self.body)).encode()),
            (b"x-content-type-options", b"nosniff"),
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
        self._watching: asyncio.Future[None] | None = None
        self._given_up: Exception | None = None

    def seconds_left(self, default: float) -> float:
        """Time until the deadline that the client named, or the default one.

        Raises:
            RefusedError: the header is not a number in its range.
        """
        text = self.headers.get(_TIMEOUT_BYTES)
        try:
            seconds = default if text is None else _seconds_decoder.decode(text)
        except ValueError:
            span = f"{MIN_SECONDS:g} to {MAX_SECONDS:g}"
            raise RefusedError(422, f"header {TIMEOUT_HEADER}: expected seconds, {span}") from None
        return seconds - (asyncio.get_running_loop().time() - self.started)

    async def json_body(self, limit: int, seconds: float) -> bytes:
        """Read a body that says it is JSON, of ``limit`` bytes at most.

        Raises:
            RefusedError: another content type or a packed body (415), too large (413), or not
                there in time (408).
            ClientGoneError: the client hung up on the way.
        """
        content_type = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type != _JSON_BYTES:
            raise RefusedError(415, f"header content-type: expected {JSON}")
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise RefusedError(415, "header content-encoding: send the body unpacked")
        if int(self.headers.get(b"content-length", b"0")) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(seconds):
                return await self._body(limit)
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive within {seconds:g} s") from None

    async def _body(self, limit: int) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            more = message.get("more_body", False)
        return bytes(body)

    async def unless_gone(
        self, answer: Awaitable[_Answer], seconds: float | None = None
    ) -> _Answer:
        """What is awaited, or an end to it when nobody waits any more; for use after the body.

        Args:
            answer: what is computed for the client.
            seconds: how long that may take.

        Raises:
            ClientGoneError: the client hung up before.
            TimeoutError: the time passed before.
        """
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        answering = asyncio.ensure_future(answer)
        watch = loop.call_later(_UNWATCHED_SECONDS, self._watch, answering, deadline)
        try:
            return await answering
        except asyncio.CancelledError:
            if self._given_up is None or _is_cancelled():
                raise
            raise self._given_up from None
        finally:
            watch.cancel()
            answering.cancel()
            if self._watching is not None:
                self._watching.cancel()

    def _watch(self, answering: asyncio.Future[Any], deadline: float | None) -> None:
        self._watching = asyncio.ensure_future(self._give_up(answering, deadline))

    async def _give_up(self, answering: asyncio.Future[Any], deadline: float | None) -> None:
        """Cancel the answer once the client hangs up or the deadline passes."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._disconnected()
            reason: Exception = ClientGoneError()
        except TimeoutError as late:
            reason = late
        if answering.cancel():
            self._given_up = reason

    async def _disconnected(self) -> None:
        """Return when the client hangs up."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _is_cancelled() -> bool:
    """Whether somebody cancels the running task itself, and not only what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def come_again(detail: str, seconds: int) -> RefusedError:
    """What a server says that cannot answer now and may so later."""
    return RefusedError(503, detail, ((b"retry-after", str(seconds).encode()),))


def encode(answer: Any) -> bytes:
    """The JSON of an answer, UTF-8, without white space."""
    try:
        return msgspec.json.encode(answer)
    except UnicodeEncodeError:  # half a surrogate pair: JSON can hold it escaped, UTF-8 cannot
        return json.dumps(msgspec.to_builtins(answer), separators=(",", ":")).encode()


def _too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"the body is larger than {limit} bytes; send less at a time")
