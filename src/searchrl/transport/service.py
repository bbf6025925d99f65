"""A JSON service over HTTP whose failures have one type and whose calls always end.

A call is tried a few times within a deadline. When the service is down as a whole, its breaker
opens and calls wait for it to come back, up to ``Patience.outage``: an outage pauses the work and
changes none of its results. A service that has never answered is not waited for, since its address
is probably wrong. What is left over is an ``InfrastructureError``; nothing here turns a failure
into a value. Answers that say the address or the key is wrong are the user's to mend and end in an
``InputError``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from searchrl.errors import InfrastructureError, InputError
from searchrl.transport.breaker import Breaker
from searchrl.transport.retry import RETRIED_STATUS, TRIES, backoff

if TYPE_CHECKING:
    import httpx2

_CONFIGURATION_STATUS = frozenset({401, 403, 404, 405})
_MAX_BYTES = 64 << 20
"""Longest answer that is read."""
_SHOWN = 200
_JSON = {"Content-Type": "application/json"}

_Closing = AsyncGenerator[None, None]
_unclosed: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Closing]] = WeakKeyDictionary()
"""Generators that close connections; held here, they outlive a service that is dropped early."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take; all in seconds.

    Attributes:
        connect: to open a connection.
        write: to hand over a piece of the request.
        read: between two pieces of the answer, so the time a service may think.
        deadline: for all tries of one call together, waits included.
        outage: how long a call waits for a service that has gone down; 0 fails at once.
    """

    connect: float = 5.0
    write: float = 10.0
    read: float = 30.0
    deadline: float = 60.0
    outage: float = 600.0


@dataclass(slots=True, eq=False)
class _TryError(Exception):
    """One failed try."""

    reason: str
    alive: bool
    again: bool
    retry_after: str | None = None


@dataclass(slots=True)
class _Session:
    """What belongs to one event loop: connections, and who may use them."""

    loop: asyncio.AbstractEventLoop
    client: httpx2.AsyncClient
    slots: asyncio.Semaphore


class Service:
    """A service that takes and gives JSON objects.

    Args:
        url: what the paths of calls are added to.
        key: sent as a bearer token; it appears in no message.
        patience: time limits.
        concurrency: calls at a time; the others wait in line, which costs them no deadline.
        transport: stands in for the network in tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        patience: Patience | None = None,
        concurrency: int = 32,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = _checked(url)
        self._key = key
        self._patience = patience or Patience()
        self._concurrency = concurrency
        self._transport = transport
        self._breaker = Breaker()
        self._trouble = ""
        self._has_answered = False
        self._session: _Session | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a JSON object and return the one that comes back.

        Raises:
            InfrastructureError: the service failed after its tries, or is down.
            InputError: the service says that the address or the key is wrong.
        """
        session = await self._open()
        async with session.slots:
            return await self._call(session.client, path, body)

    async def _call(
        self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        failures, deadline = 0, _now() + self._patience.deadline
        while True:
            if await self._wait_while_down():
                # An outage is nobody's failure in particular: the call starts over.
                failures, deadline = 0, _now() + self._patience.deadline
            try:
                answer = await self._try(client, path, body, deadline)
            except _TryError as failure:
                self._record(failure.alive)
                self._trouble = failure.reason
                failures += 1
                if self._breaker.down_for(_now()) is None or not failure.again:
                    await self._rest(failure, failures, deadline)
            else:
                self._record(alive=True)
                return answer

    async def _wait_while_down(self) -> bool:
        """Return when a request may go out; whether it had to wait for that.

        Raises:
            InfrastructureError: the service has been down for too long.
        """
        waited = False
        while (pause := self._breaker.admit(_now())) > 0:
            down = self._breaker.down_for(_now()) or 0.0
            if not self._has_answered:
                raise self._error(f"has not answered once: {self._trouble}")
            if down + pause > self._patience.outage:
                raise self._error(f"has been down for {down:.0f} s: {self._trouble}")
            await asyncio.sleep(pause)
            waited = True
        return waited or self._breaker.down_for(_now()) is not None

    def _record(self, alive: bool) -> None:
        self._breaker.record(alive, _now())
        self._has_answered = self._has_answered or alive

    async def _rest(self, failure: _TryError, failures: int, deadline: float) -> None:
        """Wait before the next try, or give up."""
        if not failure.again or failures >= TRIES:
            raise self._error(f"{failure.reason} (try {failures})") from failure
        pause = backoff(failures, failure.retry_after)
        if _now() + pause >= deadline:
            raise self._error(f"{failure.reason} (try {failures}), and time is up") from failure
        await asyncio.sleep(pause)

    async def _try(
        self, client: httpx2.AsyncClient, path: str, body: Mapping[str, Any], deadline: float
    ) -> dict[str, Any]:
        import httpx2

        try:
            async with asyncio.timeout(deadline - _now()):
                status, headers, content = await _exchange(client, self.url + path, body)
        except (TimeoutError, httpx2.ReadTimeout) as error:
            # The request was taken and is perhaps still worked on; a second one would add to it.
            raise _TryError("did not answer in time", alive=False, again=False) from error
        except httpx2.RequestError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _TryError(f"cannot be reached: {reason}", alive=False, again=True) from error
        return self._read(path, status, headers, content)

    def _read(
        self, path: str, status: int, headers: Mapping[str, str], content: bytes
    ) -> dict[str, Any]:
        """The object in an answer.

        Raises:
            InputError: the answer says that the request went to the wrong place.
            _TryError: it holds no JSON object, or says that something else went wrong.
        """
        if status in _CONFIGURATION_STATUS:
            self._record(alive=True)
            told = f"{self.url}{path} answers {status}: {self._shown(content)}"
            raise InputError(f"{told}; check url, model and key")
        if status != 200:
            reason = f"answers {status}: {self._shown(content)}"
            again = status in RETRIED_STATUS
            raise _TryError(reason, status < 500, again, headers.get("Retry-After"))
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            reason = f"answers what is not JSON: {self._shown(content)}"
            raise _TryError(reason, alive=False, again=False) from error
        if not isinstance(answer, dict):
            reason = f"answers no JSON object: {self._shown(content)}"
            raise _TryError(reason, alive=False, again=False)
        return answer

    async def _open(self) -> _Session:
        """Connections for the running event loop, which are closed when it is."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            client = self._client()
            self._session = _Session(loop, client, asyncio.Semaphore(self._concurrency))
            closing = _closing(client)
            _unclosed.setdefault(loop, []).append(closing)
            await anext(closing)
        return self._session

    def _client(self) -> httpx2.AsyncClient:
        import httpx2

        patience = self._patience
        return httpx2.AsyncClient(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"},
            timeout=httpx2.Timeout(
                connect=patience.connect,
                write=patience.write,
                read=patience.read,
                pool=patience.connect,
            ),
            limits=httpx2.Limits(max_connections=self._concurrency),
            transport=self._transport,
        )

    def _shown(self, content: bytes) -> str:
        """The beginning of an answer on one line, without the key, which some servers repeat."""
        text = " ".join(content.decode(errors="replace").split())
        return (text.replace(self._key, "[key]") if self._key else text)[:_SHOWN]

    def _error(self, what: str) -> InfrastructureError:
        return InfrastructureError(f"{self.url} {what}")


async def _exchange(
    client: httpx2.AsyncClient, url: str, body: Mapping[str, Any]
) -> tuple[int, Mapping[str, str], bytes]:
    content = bytearray()
    sent = json.dumps(body).encode()
    async with client.stream(
        "POST", url, content=sent, headers=_JSON, timeout=client.timeout
    ) as response:
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > _MAX_BYTES:
                raise _TryError("answers without end", alive=False, again=False)
        return response.status_code, response.headers, bytes(content)


async def _closing(client: httpx2.AsyncClient) -> _Closing:
    """Closes the client when ``asyncio.run`` ends, which finishes what is left of generators."""
    try:
        yield
    finally:
        await client.aclose()


def _checked(url: str) -> str:
    import httpx2

    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise InputError(f"url {url!r}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"url {url!r}: expected http://HOST:PORT/... or https://HOST/...")
    return url.rstrip("/")


def _now() -> float:
    return asyncio.get_running_loop().time()
