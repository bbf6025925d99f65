"""An ASGI application on a socket, until a signal ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from searchrl.errors import InputError
from searchrl.serving.http import App

if TYPE_CHECKING:
    import uvicorn

_BACKLOG = 1024
_SECONDS_TO_FINISH = 10
_KEEP_ALIVE_SECONDS = 30


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes any that is free.

    Raises:
        InputError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle off only where the protocol is named; with it a reply takes 40 ms more.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise InputError(f"{host}:{port}: cannot be bound: {error.strerror or error}") from error
    listening.listen(_BACKLOG)
    return listening


def url_of(listening: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: App) -> uvicorn.Server:
    """A server for an application; requests under way get ten seconds when it is told to end."""
    import uvicorn

    config = uvicorn.Config(
        app,
        lifespan="on",
        loop="asyncio",
        http="h11",
        ws="none",
        interface="asgi3",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
    )
    return uvicorn.Server(config)


def serve(app: App, listening: socket.socket, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        app: the application.
        listening: where, from :func:`listen`; closed in the end.
        started: called before the first request is answered; clients may connect from now on.
    """
    with listening:
        server = make_server(app)
        started()
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            # uvicorn finishes its requests and then passes the signal on; the work is done.
            return
