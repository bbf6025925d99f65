"""Queries of many requests, gathered into batches for one retriever.

A batch starts the moment the retriever is idle and takes whatever waits then: a lone request never
waits for company, and under load the batches grow by themselves. A query that several requests ask
is computed once, with the largest number of passages asked for; each request gets its own prefix of
the list. What nobody waits for any more is not computed. Search-R1's server answers each request on
its own, so its concurrent requests compete for the processor.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from searchrl.retrieval.protocol import Hit

Search = Callable[[Sequence[str], int], Awaitable[list[list[Hit]]]]
_LONGEST_WAIT = 30
_NEW_SHARE = 0.2
"""How much the latest batch counts in the estimate of the pace."""


class Observer(Protocol):
    """Is told what a batcher does."""

    def batch(self, queries: int) -> None:
        """So many distinct queries go to the retriever at once."""
        ...

    def load(self, queries: int) -> None:
        """So many queries are now waiting or under way for somebody."""
        ...


class OverloadedError(Exception):
    """More queries wait than the server takes on.

    Attributes:
        retry_after: whole seconds after which there should be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many queries are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(slots=True, eq=False)
class _Job:
    """One request: its answer is complete when no query of it is open."""

    queries: Sequence[str]
    k: int
    answer: asyncio.Future[list[list[Hit]]]
    found: list[list[Hit]] = field(init=False)
    open: int = field(init=False)

    def __post_init__(self) -> None:
        self.found = [[] for _ in self.queries]
        self.open = len(self.queries)

    def take(self, position: int, hits: list[Hit]) -> None:
        self.found[position] = hits[: self.k]
        self.open -= 1
        if not self.open and not self.answer.done():
            self.answer.set_result(self.found)


class Batcher:
    """Answers requests through one retriever; belongs to one event loop.

    Args:
        search: the retriever's search.
        capacity: queries that may be waiting or under way before more are turned away.
        batch: most queries of one call.
        observer: is told of every call and of the load.
    """

    def __init__(self, search: Search, capacity: int, batch: int, observer: Observer) -> None:
        self._search = search
        self._capacity = capacity
        self._batch = batch
        self._observer = observer
        self._waiting: deque[tuple[_Job, int]] = deque()
        self._load = 0
        self._pace = 0.0
        self._worker: asyncio.Task[None] | None = None

    def submit(self, queries: Sequence[str], k: int) -> asyncio.Future[list[list[Hit]]]:
        """Hand in one request; cancelling the future takes it out again.

        Returns:
            A future of one list a query, each at most ``k`` long, in the order of the queries. It
            fails as the retriever fails.

        Raises:
            OverloadedError: there is no room; a request that finds nothing waiting is let in
                whatever its size.
        """
        loop = asyncio.get_running_loop()
        job = _Job(queries, k, loop.create_future())
        if not queries:
            job.answer.set_result([])
            return job.answer
        if self._load and self._load + len(queries) > self._capacity:
            raise OverloadedError(self._retry_after())
        self._add_load(len(queries))
        job.answer.add_done_callback(lambda _: self._add_load(-len(queries)))
        self._waiting.extend((job, position) for position in range(len(queries)))
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        return job.answer

    def _add_load(self, queries: int) -> None:
        self._load += queries
        self._observer.load(self._load)

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._load * self._pace)), _LONGEST_WAIT)

    async def _work(self) -> None:
        """Search for what waits until nothing does."""
        try:
            while batch := self._next_batch():
                await self._answer(batch)
        finally:
            self._worker = None

    def _next_batch(self) -> list[tuple[_Job, int]]:
        """The next queries that somebody still waits for."""
        batch: list[tuple[_Job, int]] = []
        while self._waiting and len(batch) < self._batch:
            job, position = self._waiting.popleft()
            if not job.answer.done():
                batch.append((job, position))
        return batch

    async def _answer(self, batch: Sequence[tuple[_Job, int]]) -> None:
        unique = list(dict.fromkeys(job.queries[position] for job, position in batch))
        self._observer.batch(len(unique))
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            outcome = await self._search(unique, max(job.k for job, _ in batch))
        except Exception as error:  # noqa: BLE001 - it is what the requests fail with
            for job in {job for job, _ in batch}:
                if not job.answer.done():
                    job.answer.set_exception(error)
            return
        finally:
            self._keep_pace((loop.time() - started) / len(batch))
        found = dict(zip(unique, outcome, strict=True))
        for job, position in batch:
            job.take(position, found[job.queries[position]])

    def _keep_pace(self, seconds: float) -> None:
        """Fold in what a query of the latest batch took."""
        self._pace += (_NEW_SHARE if self._pace else 1.0) * (seconds - self._pace)
