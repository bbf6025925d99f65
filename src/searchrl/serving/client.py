"""A retriever behind HTTP: ours, or any server that speaks Search-R1's ``/retrieve``.

A search ends in hits or in an error that says whose fault it is, never in a made-up result. Calls
go through ``Service``, so an outage costs time and nothing else. Search-R1's client waits for ever
and dies of the first error; s3's hands the text "Error" to the model. Answers are held to the
promise of ``Retriever``: distinct passages, best first, at most ``k``.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from searchrl.retrieval.protocol import Hit
from searchrl.serving.answers import read_answer
from searchrl.serving.settings import MAX_BODY, MAX_QUERIES, MAX_QUERY
from searchrl.transport.keys import Credential
from searchrl.transport.service import Call, Patience, Service

if TYPE_CHECKING:
    import httpx2

_CALLS_AT_A_TIME = 64
_REFUSALS = range(300, 500)
_ROOM = MAX_BODY - 1_024
"""Bytes for queries, with room for what surrounds them."""


class HttpRetriever:
    """Searches over HTTP.

    Args:
        url: the address of the operation, as in ``http://127.0.0.1:8000/retrieve``.
        key: the API key.
        seconds: deadline of a call, its repeats included; more queries than a server takes at a
            time are several calls. A server that has not answered yet is waited for as long.
        outage: how long a search waits for a server that has gone down.
        cache: how many lists of hits are kept, one a query and ``k``; 0 keeps none.
        transport: what carries the calls, for tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        seconds: float = 60.0,
        outage: float = 600.0,
        cache: int = 10_000,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Raises:
            InputError: the address is none.
        """
        self._name = f"retriever at {url}"
        self._cache = HitCache(cache)
        self._service = Service(
            url,
            None if key is None else Credential(key),
            Patience(deadline=seconds, outage=outage, start=seconds, repeat_slow=True),
            _CALLS_AT_A_TIME,
            refusals=_REFUSALS,
            proxies=False,
            transport=transport,
        )

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``; a query is cut to 4,096 characters, the server's limit.

        Raises:
            UnavailableError: the server is down or overloaded for longer than it is waited for.
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
        await self._service.aclose()

    async def _call(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        body = {"queries": queries, "topk": k, "return_scores": True}
        answer = await self._service.ask(Call(body=body))
        return read_answer(answer, len(queries), k, self._name)


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


def _sendable(query: str) -> str:
    """The query as JSON in UTF-8 can hold it and as the server takes it."""
    return query[:MAX_QUERY].encode("utf-8", "replace").decode("utf-8")


def _parts(queries: Iterable[str]) -> Iterator[list[str]]:
    """The queries in order, in as many as one request may hold by number and by bytes."""
    part: list[str] = []
    size = 0
    for query in queries:
        length = len(json.dumps(query)) + 2
        if part and (len(part) == MAX_QUERIES or size + length > _ROOM):
            yield part
            part, size = [], 0
        part.append(query)
        size += length
    if part:
        yield part
