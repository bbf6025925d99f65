"""A retriever behind HTTP: ours, or any server that speaks Search-R1's ``/retrieve``.

A search ends in hits or in an error that says whose fault it is, within a deadline. Failed calls
are repeated with jitter. Once the breaker is open, one caller probes at a time and the others wait,
so the rest of an outage that ends before the deadline costs time and nothing else. Search-R1's
client waits for ever and dies of the first error; s3's hands the text "Error" to the model. Answers
are held to the promise of ``Retriever``: distinct passages, best first, at most ``k``.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import httpx2

from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval.protocol import Hit
from searchrl.serving.answers import read_answer
from searchrl.serving.breaker import Breaker, State
from searchrl.serving.retry import TRIES, pause, seconds_asked
from searchrl.serving.settings import MAX_BODY, MAX_QUERIES, MAX_QUERY

TIMEOUT = httpx2.Timeout(connect=5.0, read=30.0, write=10.0, pool=5.0)
_LIMITS = httpx2.Limits(max_connections=100, max_keepalive_connections=100)
_CALLS_AT_A_TIME = 64
_TRY_AGAIN = frozenset({408, 429, 502, 503, 504})
_DETAIL = 200
"""Characters of the server's reason that an error message quotes."""
_ROOM = MAX_BODY - 1_024
"""Bytes for queries, with room for what surrounds them."""


class UnavailableError(InfrastructureError):
    """The server failed, or did not answer within the tries and the time a search has."""


class _FailedTryError(Exception):
    """One try failed in a way that another may not; ``wait`` is what the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, replaceable so that hours of outage can be tested in an instant."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class HttpRetriever:
    """Searches over HTTP.

    Args:
        url: the address of the operation, as in ``http://127.0.0.1:8000/retrieve``.
        key: the API key.
        seconds: deadline of a call, all tries and pauses included; more queries than a server
            takes at a time are several calls.
        cache: how many lists of hits are kept, one a query and ``k``; 0 keeps none.
        transport: what carries the calls, for tests.
        clock: time, for tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        seconds: float = 60.0,
        cache: int = 10_000,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Raises:
            InputError: the address is none.
        """
        self._url = _address(url)
        self._name = f"retriever at {url}"
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._seconds = seconds
        self._cache = HitCache(cache)
        self._transport = transport
        self._clock = clock or Clock()
        self._breaker = Breaker(self._clock.now)
        self._draw = random.Random()
        self._connection: _Connection | None = None
        self._life: AsyncGenerator[None, None] | None = None

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``; a query is cut to 4,096 characters, the server's limit.

        Raises:
            UnavailableError: the server is down or overloaded for longer than the deadline.
            MalformedAnswerError: the answer is not one.
            InputError: the server refuses: the address, the key, or ``k`` is wrong.
        """
        asked = [_sendable(query) for query in queries]
        found: dict[str, list[Hit]] = {}
        for query in asked:
            if (hits := self._cache.get((query, k))) is not None:
                found[query] = hits
        for part in _parts(query for query in dict.fromkeys(asked) if query not in found):
            for query, hits in zip(part, await self._call(part, k), strict=True):
                found[query] = hits
                self._cache.put((query, k), hits)
        return [list(found[query]) for query in asked]

    async def aclose(self) -> None:
        """Close the connections; ``asyncio.run`` does so at the end of its event loop."""
        if self._life is not None:
            await self._life.aclose()
        self._life = self._connection = None

    async def _call(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        connection = await self._connected()
        asked = {"queries": queries, "topk": k, "return_scores": True}
        body = json.dumps(asked, ensure_ascii=False).encode()
        async with connection.turn:
            content = await self._persist(connection.client, body)
        return read_answer(content, len(queries), k, self._name)

    async def _connected(self) -> _Connection:
        """The connections of the running event loop; those of another cannot be used in it."""
        loop = asyncio.get_running_loop()
        if self._connection is None or self._connection.loop is not loop:
            client = httpx2.AsyncClient(
                headers=self._headers,
                timeout=TIMEOUT,
                limits=_LIMITS,
                transport=self._transport,
                trust_env=False,
            )
            self._connection = _Connection(loop, client, asyncio.Semaphore(_CALLS_AT_A_TIME))
            # An event loop ends its generators when it ends; this one closes the connections then.
            self._life = _close_at_the_end(client)
            await anext(self._life)
        return self._connection

    async def _persist(self, client: httpx2.AsyncClient, body: bytes) -> bytes:
        """Try until an answer comes, or the tries or the deadline are used up.

        A probe of an open breaker is none of the tries.
        """
        deadline = self._clock.now() + self._seconds
        failures, reason = 0, "was found to be down"
        while failures < TRIES and await self._await_breaker(deadline):
            probing = self._breaker.state is State.OPEN
            try:
                return await self._guarded_try(client, body, deadline)
            except _FailedTryError as error:
                failures += not probing
                reason, wait = str(error), max(error.wait, pause(max(1, failures), self._draw))
            if failures < TRIES and not await self._sleep(wait, deadline):
                break
        raise UnavailableError(f"{self._name}: {reason}")

    async def _await_breaker(self, deadline: float) -> bool:
        """Wait until a call may be made; False when that is past the deadline."""
        while wait := self._breaker.wait():
            if not await self._sleep(wait, deadline):
                return False
        return self._clock.now() < deadline

    async def _sleep(self, seconds: float, deadline: float) -> bool:
        """Sleep; False, at once, when that would pass the deadline."""
        if self._clock.now() + seconds >= deadline:
            return False
        await self._clock.sleep(seconds)
        return True

    async def _guarded_try(self, client: httpx2.AsyncClient, body: bytes, deadline: float) -> bytes:
        permit = self._breaker.enter()
        good: bool | None = None
        try:
            content = await self._try(client, body, deadline - self._clock.now())
            good = True
        except (_FailedTryError, InfrastructureError):
            good = False
            raise
        except InputError:
            good = True
            raise
        finally:
            self._breaker.leave(permit, good)
        return content

    async def _try(self, client: httpx2.AsyncClient, body: bytes, seconds: float) -> bytes:
        headers = {"content-type": "application/json"}
        try:
            async with asyncio.timeout(seconds):
                response = await client.post(
                    self._url, content=body, headers=headers, timeout=TIMEOUT
                )
        except TimeoutError as error:
            raise _FailedTryError(f"no answer within {seconds:.0f} s") from error
        except httpx2.RequestError as error:
            raise _FailedTryError(f"{type(error).__name__} {error}".rstrip()) from error
        if response.status_code in _TRY_AGAIN:
            wait = seconds_asked(response.headers.get("retry-after"))
            raise _FailedTryError(f"status {response.status_code}", wait)
        if response.status_code >= 500:
            raise UnavailableError(f"{self._name}: {_detail(response)}")
        if response.status_code != 200:
            raise InputError(f"{self._name} refuses: {_detail(response)}")
        return response.content


@dataclass(frozen=True, slots=True)
class _Connection:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    client: httpx2.AsyncClient
    turn: asyncio.Semaphore


class HitCache:
    """The most recently used lists of hits.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: OrderedDict[tuple[str, int], list[Hit]] = OrderedDict()

    def get(self, key: tuple[str, int]) -> list[Hit] | None:
        """The hits of a query and ``k``."""
        if key in self._rows:
            self._rows.move_to_end(key)
        return self._rows.get(key)

    def put(self, key: tuple[str, int], hits: list[Hit]) -> None:
        """Keep hits, in the place of those that were used longest ago."""
        self._rows[key] = hits
        self._rows.move_to_end(key)
        while len(self._rows) > self._size:
            self._rows.popitem(last=False)


async def _close_at_the_end(client: httpx2.AsyncClient) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await client.aclose()


def _address(url: str) -> httpx2.URL:
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InputError(f"retriever address {url}: {error}") from error
    if not 0 < (address.port or 80) < 65_536:
        raise InputError(f"retriever address {url}: no such port")
    return address


def _sendable(query: str) -> str:
    """The query as JSON in UTF-8 can hold it and as the server takes it."""
    return query[:MAX_QUERY].encode("utf-8", "replace").decode("utf-8")


def _parts(queries: Iterable[str]) -> Iterator[list[str]]:
    """The queries in order, in as many as one request may hold by number and by bytes."""
    part: list[str] = []
    size = 0
    for query in queries:
        length = len(json.dumps(query, ensure_ascii=False).encode()) + 2
        if part and (len(part) == MAX_QUERIES or size + length > _ROOM):
            yield part
            part, size = [], 0
        part.append(query)
        size += length
    if part:
        yield part


def _detail(response: httpx2.Response) -> str:
    """The status, and the reason where the server gives one."""
    text = " ".join(response.text.split())[:_DETAIL]
    return f"status {response.status_code} {text}".rstrip()
