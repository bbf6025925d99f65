"""Queries of many requests, gathered into batches for one retriever.

A batch starts when the retriever is idle and takes whatever waits then: a lone request never waits
for company, and under load the batches grow by themselves. Clients that were answered together come
back together, but not in the same instant; so after a batch the next waits for as many queries as
there were, a small part of the time that the batch took at most. Otherwise the first to come back
would be computed alone while the others wait. A search that is known to be cheap is computed on
the spot instead. A query that several requests ask is computed once, with the largest number of
passages asked for; each request gets its own prefix of the list. What nobody waits for any more is
not computed. Search-R1's server answers each request on its own, so its concurrent requests compete
for the processor.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from searchrl.retrieval.protocol import Hit

_LONGEST_WAIT = 30
_NEW_SHARE = 0.2
"""How much the latest batch counts in the estimate of the pace."""
_SHARE_TO_GATHER = 0.1
"""Of the time that a batch took, how long the next may wait for those who got its answers."""


class Searcher(Protocol):
    """What a batcher gathers queries for."""

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``; one call at a time."""
        ...

    def find(self, queries: Sequence[str], k: int) -> list[list[Hit]] | None:
        """The answer, computed on the spot, if that is cheap; never called during a search."""
        ...


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

    def take(self, position: int, hits: list[Hit]) -> bool:
        """Note what was found; whether that ends the request."""
        self.found[position] = hits[: self.k]
        self.open -= 1
        if self.open or self.answer.done():
            return False
        self.answer.set_result(self.found)
        return True


class Batcher:
    """Answers requests through one retriever; belongs to one event loop.

    Args:
        searcher: the retriever.
        capacity: queries that may be waiting or under way before more are turned away.
        batch: most queries of one call.
        observer: is told of every call and of the load.
    """

    def __init__(self, searcher: Searcher, capacity: int, batch: int, observer: Observer) -> None:
        self._searcher = searcher
        self._capacity = capacity
        self._batch = batch
        self._observer = observer
        self._waiting: deque[tuple[_Job, int]] = deque()
        self._load = 0
        self._pace = 0.0
        self._worker: asyncio.Task[None] | None = None
        self._away = 0
        self._gather_until = 0.0
        self._all_back: asyncio.Future[None] | None = None

    def find(self, queries: Sequence[str], k: int) -> list[list[Hit]] | None:
        """The answer to a request of distinct queries that is computed on the spot.

        Returns:
            See ``submit``; nothing where others wait, or where that takes its time.
        """
        if self._worker is not None or not queries or len(set(queries)) < len(queries):
            return None
        found = self._searcher.find(queries, k)
        if found is not None:
            self._observer.batch(len(queries))
        return found

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
        self._away = max(0, self._away - 1)
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        elif self._all_back is not None and not self._away:
            _wake(self._all_back)
        return job.answer

    def _add_load(self, queries: int) -> None:
        self._load += queries
        self._observer.load(self._load)

    def _retry_after(self) -> int:
        return min(max(1, math.ceil(self._load * self._pace)), _LONGEST_WAIT)

    async def _work(self) -> None:
        """Search for what waits until nothing does."""
        try:
            while self._waiting:
                await self._gather()
                if batch := self._next_batch():
                    await self._answer(batch)
        finally:
            self._worker = None

    async def _gather(self) -> None:
        """Wait a little for the clients of the batch before, if they are not all back."""
        loop = asyncio.get_running_loop()
        left = self._gather_until - loop.time()
        if not self._away or left <= 0 or len(self._waiting) >= self._batch:
            return
        self._all_back = loop.create_future()
        timer = loop.call_later(left, _wake, self._all_back)
        try:
            await self._all_back
        finally:
            timer.cancel()
            self._all_back = None

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
            outcome = await self._searcher.search(unique, max(job.k for job, _ in batch))
        except Exception as error:  # noqa: BLE001 - it is what the requests fail with
            for job in {job for job, _ in batch}:
                if not job.answer.done():
                    job.answer.set_exception(error)
            return
        finally:
            ended = loop.time()
            self._keep_pace((ended - started) / len(batch))
        found = dict(zip(unique, outcome, strict=True))
        self._away = sum(
            job.take(position, found[job.queries[position]]) for job, position in batch
        )
        self._gather_until = ended + _SHARE_TO_GATHER * (ended - started)

    def _keep_pace(self, seconds: float) -> None:
        """Fold in what a query of the latest batch took."""
        self._pace += (_NEW_SHARE if self._pace else 1.0) * (seconds - self._pace)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
