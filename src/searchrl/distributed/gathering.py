"""Searches of many episodes, sent through one retriever as few calls.

A call goes out as soon as the one before has come back, with everything that was asked meanwhile:
a lone search never waits for company. A failed call fails the searches that were in it, no others.

Calls go out one by one, and a breaker tells an outage by more failures than one call has tries. So
a call that found nobody is made once more: it is the one that waits for the server to come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.retrieval.protocol import Hit, Retriever
from searchrl.transport.errors import UnavailableError


@dataclass(slots=True, eq=False)
class _Search:
    queries: Sequence[str]
    k: int
    answer: asyncio.Future[list[list[Hit]]]


class GatheringRetriever:
    """A retriever for all episodes of one event loop.

    Args:
        retriever: who answers.
    """

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._waiting: list[_Search] = []
        self._sender: asyncio.Task[None] | None = None

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``."""
        loop = asyncio.get_running_loop()
        search = _Search(queries, k, loop.create_future())
        self._waiting.append(search)
        if self._sender is None or self._sender.done():
            self._sender = loop.create_task(self._send())
        return await search.answer

    async def _send(self) -> None:
        while self._waiting:
            # One turn of the loop, for those who ask at the same moment.
            await asyncio.sleep(0)
            k = self._waiting[0].k
            batch = [search for search in self._waiting if search.k == k]
            self._waiting = [search for search in self._waiting if search.k != k]
            await self._answer([search for search in batch if not search.answer.done()], k)

    async def _answer(self, batch: Sequence[_Search], k: int) -> None:
        queries = [query for search in batch for query in search.queries]
        if not queries:
            return
        try:
            found = iter(await self._search(queries, k))
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            for search in batch:
                if not search.answer.done():
                    search.answer.set_exception(error)
            return
        for search in batch:
            hits = [next(found) for _ in search.queries]
            if not search.answer.done():
                search.answer.set_result(hits)

    async def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        try:
            return await self._retriever.search(queries, k)
        except UnavailableError:
            return await self._retriever.search(queries, k)
