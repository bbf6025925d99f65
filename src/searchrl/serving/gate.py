"""Who may ask a server what: names it goes by, its API key, its paths.

Every request passes the same gate, in this order: its Host header (so that a web page cannot reach
a server on this machine by another name), its API key, its path, its method. A route says itself
whether it is open to everybody, and none is unless it says so. Without a key a server listens on
loopback addresses only.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from searchrl.errors import InputError
from searchrl.serving.http import JSON, RefusedError, Reply, Request
from searchrl.serving.settings import LOOPBACK_NAMES


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
    answers: Mapping[int, Sequence[type[Struct]]] = field(default_factory=dict)
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
        self._key = None if key is None else key.encode()

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
        scheme, _, given = (header or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not given.strip():
            challenge = ((b"www-authenticate", b"Bearer"),)
            raise RefusedError(401, "header authorization: Bearer and the API key", challenge)
        if not hmac.compare_digest(given.strip(), self._key):
            raise RefusedError(403, "header authorization: not the API key of this server")


def check_exposure(host: str, guarded: bool) -> None:
    """Refuse to answer the network without a key.

    Raises:
        InputError: the host is not a loopback one, and no key guards the server.
    """
    if not guarded and not is_loopback(host):
        raise InputError(
            f"--host {host}: other machines could use the server without a key; put one into an "
            "environment variable and name it with --key-variable, or serve on 127.0.0.1"
        )


def allowed_hosts(host: str, named: Sequence[str], guarded: bool) -> tuple[str, ...]:
    """Names that a Host header may hold; empty for any, where a key guards and none are named."""
    if guarded and not named:
        return ()
    own = f"[{host}]" if ":" in host else host
    return (*LOOPBACK_NAMES, own.lower(), *(name.lower() for name in named))


def is_loopback(host: str) -> bool:
    """Whether a host name or address leads to this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name in a Host header, in lower case, without the port."""
    if header.startswith("["):
        return header.partition("]")[0].lower() + "]"
    return header.partition(":")[0].lower()
