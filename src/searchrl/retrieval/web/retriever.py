"""Search on the web behind the ``Retriever`` protocol.

A passage is a result: its address is the id, its rank the score. A query is paid for once, however
many ask it, because answers are kept on disk by request. The servers of Search-R1 return up to
twice as many results as asked for, invent passages when a search fails, and take their key on the
command line; here ``k`` holds, a failed search is an error, and keys come from the environment.
What is not asked for is not found: a service has only so many pages of results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from searchrl.data.passages import Passage
from searchrl.errors import InputError
from searchrl.retrieval.protocol import Hit
from searchrl.retrieval.web.pages import PageReader
from searchrl.retrieval.web.provider import Provider, WebResult
from searchrl.transport.service import Call, Service
from searchrl.transport.store import AnswerStore, answer_key


class WebRetriever:
    """Searches with one service.

    Args:
        provider: the form of its requests and answers.
        service: where it is.
        store: answers that are not asked for again.
        reader: reads the pages found; ``None`` leaves it at the snippets.
        max_requests: requests after which nothing more is asked for.
    """

    def __init__(
        self,
        provider: Provider,
        service: Service,
        store: AnswerStore,
        reader: PageReader | None = None,
        max_requests: int | None = None,
    ) -> None:
        self._provider = provider
        self._service = service
        self._store = store
        self._reader = reader
        self._left = max_requests
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``; a query without words finds nothing and is not sent.

        Raises:
            UnavailableError: the service failed, or is down for longer than it is waited for.
            MalformedAnswerError: its answer is not one.
            InputError: it refuses the key or the request, or the cap on requests is reached.
        """
        if k <= 0:
            raise InputError(f"k is {k}; a search needs at least 1")
        asked = [_sendable(query, self._provider.max_query) for query in queries]
        found = await _together({query: self._hits(query, k) for query in dict.fromkeys(asked)})
        return [list(found[query]) for query in asked]

    async def _hits(self, query: str, k: int) -> list[Hit]:
        if not query:
            return []
        results = await self._results(query, k)
        texts = await _together(
            {result.url: self._text(query, result) for result in results.values()}
        )
        return [
            Hit(Passage(result.url, result.title, texts[result.url]), 1.0 / rank)
            for rank, result in enumerate(results.values(), start=1)
        ]

    async def _results(self, query: str, k: int) -> dict[str, WebResult]:
        """The first ``k`` distinct results by address, over as many pages as that takes."""
        found: dict[str, WebResult] = {}
        for page in range(self._provider.pages):
            answer = await self._answer(self._provider.call(query, page))
            before = len(found)
            for result in self._provider.results(answer):
                found.setdefault(result.url, result)
            if len(found) >= k or len(found) == before:
                break
        return dict(list(found.items())[:k])

    async def _answer(self, call: Call) -> dict[str, Any]:
        """The service's answer; of those who ask for the same at once, one asks the service."""
        key = answer_key(self._service.url + call.path, [call.body, dict(call.params)])
        lock = self._asking.setdefault(key, asyncio.Lock())
        async with lock:
            answer = self._store.get(key)
            if answer is None:
                self._spend()
                answer = await self._service.ask(call)
                # Only what can be read is worth keeping.
                self._provider.results(answer)
                self._store.put(key, answer)
        return answer

    def _spend(self) -> None:
        if self._left is None:
            return
        if self._left == 0:
            raise InputError(
                "retriever.max_requests is used up; raise it, or search again what was searched"
            )
        self._left -= 1

    async def _text(self, query: str, result: WebResult) -> str:
        if self._reader is None:
            return result.snippet
        return await self._reader.read(result.url, query, result.snippet)


async def _together(work: dict[str, Any]) -> dict[str, Any]:
    """The results of coroutines by their names; the first failure ends the others."""
    tasks = [asyncio.ensure_future(each) for each in work.values()]
    try:
        return dict(zip(work, await asyncio.gather(*tasks), strict=True))
    finally:
        for task in tasks:
            task.cancel()


def _sendable(query: str, longest: int) -> str:
    """The query on one line, as JSON can hold it and as the service takes it."""
    words = " ".join(query.encode("utf-8", "replace").decode("utf-8").split())
    return words[:longest].rstrip()
