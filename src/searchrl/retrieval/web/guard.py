"""Which addresses on the web may be fetched: public ones, and no other whatever names them.

An address found on the web is somebody else's input, and this program runs where it may reach
routers, databases and a cloud's metadata service. A host is resolved once; every address it has
must be public; and the connection goes to that very address, so a name cannot lead elsewhere the
second time. Addresses inside addresses (IPv4 in IPv6, translation, tunnels) are refused whole.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host and port."""

_PORTS = frozenset({80, 443})
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_TUNNELS = tuple(map(ipaddress.ip_network, ("2001::/23", "2002::/16", "3fff::/20")))
"""In the global range and no hosts: protocols' such as Teredo, 6to4, documentation's."""
_PROTOCOLS_V4 = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24")))
"""Protocols' and relays', of which older versions of Python take a part for global."""
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
"""A public address at which a cloud (Azure) answers its own machines."""


class BlockedError(Exception):
    """An address that is not fetched; the text says why."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A checked address: what is asked for, and where it is asked.

    Attributes:
        url: with the host's name.
        address: where the connection goes.
    """

    url: httpx2.URL
    address: str

    @property
    def host(self) -> str:
        """The host's name, as a certificate writes it."""
        return self.url.raw_host.decode("ascii").strip("[]")

    @property
    def pinned_url(self) -> httpx2.URL:
        """The URL with the address in the place of the name."""
        return self.url.copy_with(host=self.address)

    @property
    def host_header(self) -> str:
        """What the server is called in the request."""
        return self.url.netloc.decode("ascii")


def is_public(address: Address) -> bool:
    """Whether an address belongs to a host of the public internet."""
    if not address.is_global or address.is_multicast or address in _METADATA:
        return False
    if isinstance(address, IPv6Address):
        return address in _GLOBAL_V6 and not any(address in tunnel for tunnel in _TUNNELS)
    return not any(address in network for network in _PROTOCOLS_V4)


class Guard:
    """Checks and pins addresses.

    Args:
        resolve: finds the addresses of a host.
        allowed: which of them may be asked.
        ports: which ports may be.
    """

    def __init__(
        self,
        resolve: Resolve | None = None,
        allowed: Callable[[Address], bool] = is_public,
        ports: frozenset[int] = _PORTS,
    ) -> None:
        self._resolve = resolve or resolve_host
        self._allowed = allowed
        self._ports = ports

    async def admit(self, text: str) -> Pinned:
        """Check an address and pin it.

        Raises:
            BlockedError: it may not be fetched, or leads nowhere.
        """
        url = _parsed(text)
        port = url.port or (443 if url.scheme == "https" else 80)
        if port not in self._ports:
            raise BlockedError(f"port {port} is not one of the web's")
        host = url.raw_host.decode("ascii").strip("[]")
        try:
            found = await self._resolve(host, port)
            addresses = [ipaddress.ip_address(each.partition("%")[0]) for each in found]
        except (OSError, ValueError) as error:
            raise BlockedError(f"the host {host} has no address: {error}") from error
        if not addresses or not all(map(self._allowed, addresses)):
            raise BlockedError(f"the host {host} is not on the public internet")
        return Pinned(url, str(addresses[0]))


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system knows them."""
    loop = asyncio.get_running_loop()
    rows = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(row[4][0]) for row in rows]


def _parsed(text: str) -> httpx2.URL:
    import httpx2

    try:
        url = httpx2.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx2.InvalidURL, UnicodeError, TypeError, ValueError) as error:
        raise BlockedError(f"no address: {error}") from error
    if url.scheme not in ("http", "https"):
        raise BlockedError(f"the scheme {url.scheme!r} is not the web's")
    if not host:
        raise BlockedError("the address has no host")
    if url.userinfo:
        raise BlockedError("the address holds a name or a password")
    return url
