"""The little of ASGI that the servers here need: bodies with a limit, JSON out, one error form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class RefusedError(Exception):
    """A request that gets an error for an answer.

    Args:
        status: the HTTP status.
        message: what is wrong, for whoever sent the request.
        headers: more headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


class DisconnectedError(Exception):
    """The client is gone; there is nobody to answer."""


async def read_body(receive: Receive, limit: int, seconds: float) -> bytes:
    """A request's body.

    Raises:
        RefusedError: it is longer than ``limit`` bytes, or takes longer than ``seconds`` to come.
        DisconnectedError: the client left before it was whole.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise DisconnectedError
                body += event.get("body", b"")
                if len(body) > limit:
                    raise RefusedError(413, f"the request is longer than {limit:,} bytes")
                if not event.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise RefusedError(408, f"the request took longer than {seconds:.0f} s to come") from error


async def send_json(
    send: Send, status: int, value: Any, headers: Mapping[str, str] | None = None
) -> None:
    """Answer with a JSON value."""
    body = json.dumps(value, allow_nan=False).encode()
    fields = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Content-Type-Options": "nosniff",
        **(headers or {}),
    }
    encoded = [(name.lower().encode(), text.encode()) for name, text in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def send_refusal(send: Send, refused: RefusedError) -> None:
    """Answer with an error in the form of OpenAI's API."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    error = {"message": refused.message, "type": kind, "param": None, "code": refused.status}
    await send_json(send, refused.status, {"error": error}, refused.headers)


async def disconnected(receive: Receive) -> None:
    """Return when the client has left; only to be asked once the body is read."""
    while (await receive())["type"] != "http.disconnect":
        pass
