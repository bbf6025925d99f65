"""What every server here is to ASGI: it starts, lets requests through its gate, answers, stops.

A request ends in the handler's reply, in a refusal in the server's own form, or, when the client
has hung up, in nothing. A bug ends one request with status 500 and a line in the log, and tells the
client nothing.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from searchrl.serving.gate import Gate, Route
from searchrl.serving.http import (
    ClientGoneError,
    Receive,
    RefusedError,
    Reply,
    Request,
    Scope,
    Send,
)

_CLIENT_GONE = 499
"""What is counted, as nginx does, where no status could be sent."""
_log = logging.getLogger(__name__)


class Exchange:
    """A request while it is answered; ``status`` is what is counted at its end."""

    __slots__ = ("status",)

    def __init__(self) -> None:
        self.status = 500


class Application(ABC):
    """An ASGI application of routes.

    Args:
        routes: all operations.
        hosts: names that a Host header may hold; empty for any.
        key: the API key; ``None`` lets everybody pass.

    Attributes:
        routes: all operations.
    """

    def __init__(self, routes: Sequence[Route], hosts: Sequence[str], key: str | None) -> None:
        self.routes = routes
        self._paths = frozenset(route.path for route in routes)
        self._gate = Gate(routes, hosts, key)

    @abstractmethod
    def start(self) -> None:
        """Begin; requests come from now on."""

    @abstractmethod
    async def stop(self) -> None:
        """End; no request is under way any more."""

    @abstractmethod
    def refusal(self, error: RefusedError) -> Reply:
        """The reply that an error asks for, in this server's form."""

    def observed(self, route: str) -> AbstractContextManager[Exchange]:
        """What counts a request of ``route``, or of ``other`` where there is no such path."""
        return nullcontext(Exchange())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "lifespan":
            await self._go_through_life(receive, send)
        elif scope["type"] == "http":
            await self._exchange(Request(scope, receive), send)

    async def _go_through_life(self, receive: Receive, send: Send) -> None:
        await receive()
        self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _exchange(self, request: Request, send: Send) -> None:
        route = request.path if request.path in self._paths else "other"
        with self.observed(route) as exchange:
            try:
                reply = await self._reply(request)
            except ClientGoneError:
                exchange.status = _CLIENT_GONE
                return
            exchange.status = reply.status
            await reply.send(send)

    async def _reply(self, request: Request) -> Reply:
        try:
            return await self._gate.admit(request).handler(request)
        except RefusedError as error:
            return self.refusal(error)
        except ClientGoneError:
            raise
        except Exception:  # noqa: BLE001 - the request fails, not the server
            _log.exception("%s %s failed", request.method, request.path)
            return self.refusal(RefusedError(500, "the server failed; see its log"))
