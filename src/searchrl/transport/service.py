"""A JSON service over HTTP whose failures have one type and whose calls always end.

A call is tried a few times within a deadline. When the service is down as a whole, its breaker
opens: one caller probes at a time and the others wait for it to come back, up to
``Patience.outage``, so an outage pauses the work and changes none of its results. What is left over
is an ``UnavailableError`` or a ``MalformedAnswerError``; nothing here turns a failure into a value.
Answers that say the address or the key is wrong are the user's to mend and end in an
``InputError``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from searchrl.errors import InfrastructureError, InputError
from searchrl.transport.breaker import Breaker, State
from searchrl.transport.errors import MalformedAnswerError, UnavailableError
from searchrl.transport.keys import Credential
from searchrl.transport.pace import Pace
from searchrl.transport.retry import RETRIED_STATUS, TRIES, backoff

if TYPE_CHECKING:
    import httpx2

CONFIGURATION_STATUS = frozenset({401, 403, 404, 405})
"""Answers that say that the request went to the wrong place, or with the wrong key."""
_MAX_BYTES = 64 << 20
"""Longest answer that is read."""
_SHOWN = 200

_Closing = AsyncGenerator[None, None]
_unclosed: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Closing]] = WeakKeyDictionary()
"""Generators that close connections; held here, they outlive a service that is dropped early."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take; all in seconds but the last.

    Attributes:
        connect: to open a connection.
        write: to hand over a piece of the request.
        read: between two pieces of the answer, so the time a service may think.
        deadline: for all tries of one call together, pauses included.
        outage: how long a call waits for a service that has gone down; 0 fails at once.
        start: the same for a service that has never answered, whose address may be wrong.
        repeat_slow: send a call again that was not answered in time. Not where the first is
            perhaps still worked on and a second would add to it.
    """

    connect: float = 5.0
    write: float = 10.0
    read: float = 30.0
    deadline: float = 60.0
    outage: float = 600.0
    start: float = 0.0
    repeat_slow: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        path: added to the service's url.
        body: a JSON object to post; a call without one is a GET.
        params: of the query.
    """

    path: str = ""
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _TryError(Exception):
    """One failed try."""

    reason: str
    alive: bool
    again: bool
    retry_after: str | None = None
    malformed: bool = False


@dataclass(slots=True)
class _Session:
    """What belongs to one event loop: connections, and who may use them."""

    loop: asyncio.AbstractEventLoop
    client: httpx2.AsyncClient
    slots: asyncio.Semaphore
    closing: _Closing


class Service:
    """A service that answers with JSON objects.

    Args:
        url: what the paths of calls are added to.
        credential: sent with every call; its key appears in no message.
        patience: time limits.
        concurrency: calls at a time; the others wait in line, which costs them no deadline.
        per_second: tries a second; ``None`` for no limit.
        refusals: statuses that are the user's to mend.
        proxies: whether the environment's proxies are used.
        transport: stands in for the network in tests.
    """

    def __init__(
        self,
        url: str,
        credential: Credential | None = None,
        patience: Patience | None = None,
        concurrency: int = 32,
        per_second: float | None = None,
        refusals: Container[int] = CONFIGURATION_STATUS,
        proxies: bool = True,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Raises:
            InputError: the url is none.
        """
        self.url = _checked(url)
        self._credential = credential
        self._patience = patience or Patience()
        self._concurrency = concurrency
        self._pace = Pace(per_second)
        self._refusals = refusals
        self._proxies = proxies
        self._transport = transport
        self._breaker = Breaker(_now)
        self._trouble = "no call has come through"
        self._has_answered = False
        self._session: _Session | None = None
        if credential is not None and credential.in_query:
            _keep_out_of_the_log(credential)

    async def ask(self, call: Call) -> dict[str, Any]:
        """Send a call and return the JSON object that comes back.

        Raises:
            UnavailableError: the service failed after its tries, or is down.
            MalformedAnswerError: the answer is no JSON object.
            InputError: the service says that the address, the key or the request is wrong.
        """
        session = await self._open()
        async with session.slots:
            return await self._persist(session.client, call)

    async def aclose(self) -> None:
        """Close the connections; ``asyncio.run`` does so at the end of its event loop."""
        if self._session is not None:
            await self._session.closing.aclose()
        self._session = None

    async def _persist(self, client: httpx2.AsyncClient, call: Call) -> dict[str, Any]:
        """Try until an answer comes, or the tries, the time or the outage are used up.

        A probe of an open breaker is none of the tries.
        """
        failures, deadline = 0, 0.0
        while True:
            await self._pace.turn()
            if await self._wait_while_down() or not failures:
                # An outage is nobody's failure in particular: the call starts over.
                failures, deadline = 0, _now() + self._patience.deadline
            try:
                return await self._guarded_try(client, call, deadline)
            except _TryError as failure:
                self._trouble = failure.reason
                failures += 1
                if self._breaker.state is State.CLOSED or not failure.again:
                    await self._rest(failure, failures, deadline)

    async def _wait_while_down(self) -> bool:
        """Return when a request may go out; whether the service was down until now.

        Raises:
            UnavailableError: it has been down for too long.
        """
        waited = False
        while (pause := self._breaker.wait()) > 0:
            down = self._breaker.down_for
            limit = self._patience.outage if self._has_answered else self._patience.start
            if down + pause > limit:
                if not self._has_answered:
                    raise UnavailableError(f"{self.url} has not answered once: {self._trouble}")
                raise UnavailableError(
                    f"{self.url} has been down for {down:.0f} s: {self._trouble}"
                )
            await asyncio.sleep(pause)
            waited = True
        return waited or self._breaker.state is not State.CLOSED

    async def _rest(self, failure: _TryError, failures: int, deadline: float) -> None:
        """Wait before the next try, or give up."""
        if not failure.again or failures >= TRIES:
            raise self._error(failure, f"(try {failures})") from failure
        pause = backoff(failures, failure.retry_after)
        if _now() + pause >= deadline:
            raise self._error(failure, f"(try {failures}), and time is up") from failure
        await asyncio.sleep(pause)

    async def _guarded_try(
        self, client: httpx2.AsyncClient, call: Call, deadline: float
    ) -> dict[str, Any]:
        """One try, its outcome told to the breaker; one that is given up says nothing."""
        permit = self._breaker.enter()
        alive: bool | None = None
        try:
            answer = await self._try(client, call, deadline)
            alive = True
        except _TryError as failure:
            alive = failure.alive
            raise
        except InputError:
            alive = True
            raise
        finally:
            self._breaker.leave(permit, alive)
            self._has_answered = self._has_answered or bool(alive)
        return answer

    async def _try(self, client: httpx2.AsyncClient, call: Call, deadline: float) -> dict[str, Any]:
        import httpx2

        try:
            async with asyncio.timeout(deadline - _now()):
                status, headers, content = await _exchange(client, self.url, call)
        except (TimeoutError, httpx2.ReadTimeout) as error:
            again = self._patience.repeat_slow
            raise _TryError("did not answer in time", alive=False, again=again) from error
        except httpx2.RequestError as error:
            reason = self._shown(str(error)) or type(error).__name__
            raise _TryError(f"cannot be reached: {reason}", alive=False, again=True) from error
        return self._read(call.path, status, headers, content)

    def _read(
        self, path: str, status: int, headers: Mapping[str, str], content: bytes
    ) -> dict[str, Any]:
        """The object in an answer.

        Raises:
            InputError: the answer says that the request is the user's to mend.
            _TryError: it holds no JSON object, or says that something else went wrong.
        """
        shown = self._shown(content.decode(errors="replace"))
        if status in RETRIED_STATUS:
            asked = headers.get("Retry-After")
            raise _TryError(f"answers {status}: {shown}", status < 500, True, asked)
        if status in self._refusals:
            told = f"{self.url}{path} answers {status}: {shown}"
            raise InputError(f"{told}; check the url, the key and the settings")
        if status != 200:
            raise _TryError(f"answers {status}: {shown}", status < 500, False)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            reason = f"answers what is not JSON: {shown}"
            raise _TryError(reason, alive=False, again=False, malformed=True) from error
        if not isinstance(answer, dict):
            reason = f"answers no JSON object: {shown}"
            raise _TryError(reason, alive=False, again=False, malformed=True)
        return answer

    async def _open(self) -> _Session:
        """Connections for the running event loop, which are closed when it is."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            client = self._client()
            closing = _closing(client)
            _unclosed.setdefault(loop, []).append(closing)
            await anext(closing)
            self._session = _Session(loop, client, asyncio.Semaphore(self._concurrency), closing)
        return self._session

    def _client(self) -> httpx2.AsyncClient:
        import httpx2

        patience, credential = self._patience, self._credential
        return httpx2.AsyncClient(
            headers=None if credential is None else credential.headers,
            params=None if credential is None else credential.params,
            timeout=httpx2.Timeout(
                connect=patience.connect,
                write=patience.write,
                read=patience.read,
                pool=patience.connect,
            ),
            limits=httpx2.Limits(
                max_connections=self._concurrency, max_keepalive_connections=self._concurrency
            ),
            trust_env=self._proxies,
            transport=self._transport,
        )

    def _shown(self, text: str) -> str:
        """The beginning of a text on one line, without the key, which some servers repeat."""
        line = " ".join(text.split())
        return (self._credential.hide(line) if self._credential else line)[:_SHOWN]

    def _error(self, failure: _TryError, told: str) -> InfrastructureError:
        kind = MalformedAnswerError if failure.malformed else UnavailableError
        return kind(f"{self.url} {failure.reason} {told}")


async def _exchange(
    client: httpx2.AsyncClient, url: str, call: Call
) -> tuple[int, Mapping[str, str], bytes]:
    posted = call.body is not None
    content = bytearray()
    async with client.stream(
        "POST" if posted else "GET",
        url + call.path,
        params=dict(call.params) or None,
        content=json.dumps(call.body).encode() if posted else None,
        headers={"Content-Type": "application/json"} if posted else None,
        timeout=client.timeout,
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


def _keep_out_of_the_log(credential: Credential) -> None:
    """Hide the key in the addresses that the HTTP library logs."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = credential.hide(record.getMessage()), ()
        return True

    logging.getLogger("httpx2").addFilter(hide)


def _checked(url: str) -> str:
    import httpx2

    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise InputError(f"url {url!r}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"url {url!r}: expected http://HOST:PORT/... or https://HOST/...")
    if not 0 < (parsed.port or 80) < 65_536:
        raise InputError(f"url {url!r}: no such port")
    return url.rstrip("/")


def _now() -> float:
    return asyncio.get_running_loop().time()
