"""Who may ask a server: this machine alone, or whoever has the key.

Without a key a server binds to loopback only, and a request has to name a loopback host: otherwise
a page in a browser could reach it through a host name that leads here. Health is open to all.
"""

from __future__ import annotations

import hmac
import ipaddress

from searchrl.errors import InputError
from searchrl.serving.asgi import App, Receive, RefusedError, Scope, Send, send_refusal

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})


def check_bind(host: str, key: str | None) -> None:
    """See that a server may bind to a host.

    Raises:
        InputError: the host can be reached from elsewhere and there is no key.
    """
    if key is None and not is_loopback(host):
        raise InputError(
            f"--host {host}: anybody could use the server; name a key with --key-variable, or "
            "bind to 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address leads to this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Lets through what may pass to the application behind it.

    Args:
        app: the application.
        key: what a bearer has to name; ``None`` for requests of this machine only.
    """

    def __init__(self, app: App, key: str | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                self._check(dict(scope["headers"]))
            except RefusedError as refused:
                await send_refusal(send, refused)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: dict[bytes, bytes]) -> None:
        if self._key is None:
            host = headers.get(b"host", b"").decode("latin-1")
            if not is_loopback(_host_name(host)):
                raise RefusedError(421, f"host {host!r} is not served here")
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not given:
            raise RefusedError(401, "a key is needed", {"WWW-Authenticate": "Bearer"})
        if not hmac.compare_digest(given.strip(), self._key):
            raise RefusedError(403, "the key is wrong")


def _host_name(host: str) -> str:
    """The name in a ``Host`` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
