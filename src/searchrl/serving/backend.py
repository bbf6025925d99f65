"""The retriever of a server, in a thread of its own.

The thread opens the index and then runs searches in its own event loop, so requests are read,
checked and answered meanwhile, and the server says that it lives before the index is open. A search
that computes and one that waits for another service are both at home there. One that computes less
than it takes to wake a thread is better off in the thread that has the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from searchrl.data.passages import Passage
from searchrl.errors import InfrastructureError, SearchRLError
from searchrl.retrieval.protocol import Hit, IndexRetriever, Retriever
from searchrl.retrieval.rerank import CrossEncoder, reread

Advance = Callable[[float], None]
"""Told the share of the index that has been checked."""
Open = Callable[[Advance], Retriever]
OpenReader = Callable[[], CrossEncoder]
_CHEAP = 0.000_3
"""Seconds of computing that do not pay for waking a thread twice."""
_NEW_SHARE = 0.2
"""How much the latest search counts in the estimate of what one costs."""


class Backend:
    """Opens one retriever and searches it; a cross-encoder beside it, where there is one.

    Args:
        open_retriever: opens the index; runs in the backend's thread.
        opened: called, in that thread, when the index is open.
        failed: told, in that thread, why the index could not be opened.
        open_reader: loads the cross-encoder, in that thread too.

    Attributes:
        status: ``opening``, ``ready`` or ``failed``.
        progress: the share of the index that has been checked, from 0 to 1.
    """

    def __init__(
        self,
        open_retriever: Open,
        opened: Callable[[], None],
        failed: Callable[[SearchRLError], None],
        open_reader: OpenReader | None = None,
    ) -> None:
        self.status = "opening"
        self.progress = 0.0
        self._open = open_retriever
        self._open_reader = open_reader
        self._reader: CrossEncoder | None = None
        self._opened = opened
        self._failed = failed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retriever: Retriever | None = None
        self._cost = math.inf
        self._thread = threading.Thread(target=self._run, name="retriever", daemon=True)

    def start(self) -> None:
        """Begin to open the index."""
        self._thread.start()

    def stop(self) -> None:
        """Let go of the thread; a search under way is finished first."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``.

        Raises:
            InfrastructureError: the index is not open.
        """
        retriever = self._retriever
        if retriever is None:
            raise InfrastructureError("the index is not open yet")
        if not isinstance(retriever, IndexRetriever):
            return await self._over_there(retriever.search(queries, k))

        async def work() -> list[list[Hit]]:
            return self._compute(retriever, queries, k)

        return await self._over_there(work())

    def find(self, queries: Sequence[str], k: int) -> list[list[Hit]] | None:
        """The answer, computed in the thread that asks, if that is cheap; not during a search."""
        retriever = self._retriever
        if not isinstance(retriever, IndexRetriever) or len(queries) * self._cost > _CHEAP:
            return None
        return self._compute(retriever, queries, k)

    def _compute(
        self, retriever: IndexRetriever, queries: Sequence[str], k: int
    ) -> list[list[Hit]]:
        """Search an index of this process, and note what a query cost."""
        started = time.thread_time()
        found = retriever.find(queries, k)
        cost = (time.thread_time() - started) / len(queries)
        known = self._cost < math.inf
        self._cost = self._cost + _NEW_SHARE * (cost - self._cost) if known else cost
        return found

    async def rerank(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Passage]]
    ) -> list[list[Hit]]:
        """See ``reread``; in turn with the searches.

        Raises:
            InfrastructureError: the cross-encoder is not loaded.
        """
        reader = self._reader
        if reader is None:
            raise InfrastructureError("the reranker is not loaded yet")

        async def work() -> list[list[Hit]]:
            return reread(reader, queries, candidates)

        return await self._over_there(work())

    async def _over_there(self, work: Coroutine[Any, Any, list[list[Hit]]]) -> list[list[Hit]]:
        """Run a coroutine in the retriever's thread; cancelling cancels it there.

        As ``run_coroutine_threadsafe`` does, without its future of locks between the two loops,
        which is a quarter of the way.
        """
        there, here = self._loop, asyncio.get_running_loop()
        assert there is not None, "it is there before what is searched is"
        answer: asyncio.Future[list[list[Hit]]] = here.create_future()
        tasks: list[asyncio.Task[list[list[Hit]]]] = []

        def begin() -> None:
            task = there.create_task(work)
            tasks.append(task)
            task.add_done_callback(lambda done: here.call_soon_threadsafe(_settle, answer, done))

        def end() -> None:
            for task in tasks:
                task.cancel()

        there.call_soon_threadsafe(begin)
        try:
            return await answer
        except asyncio.CancelledError:
            there.call_soon_threadsafe(end)
            raise

    def _run(self) -> None:
        try:
            reader = None if self._open_reader is None else self._open_reader()
            retriever = self._open(self._advance)
        except SearchRLError as error:
            self.status = "failed"
            self._failed(error)
            return
        with contextlib.closing(asyncio.new_event_loop()) as self._loop:
            self._retriever, self._reader = retriever, reader
            self.status, self.progress = "ready", 1.0
            self._opened()
            self._loop.run_forever()

    def _advance(self, share: float) -> None:
        self.progress = share


def _settle(answer: asyncio.Future[list[list[Hit]]], done: asyncio.Task[list[list[Hit]]]) -> None:
    """Give an answer what was computed for it, in the thread that waits for it."""
    if answer.done():
        return
    if done.cancelled():
        answer.cancel()
    elif error := done.exception():
        answer.set_exception(error)
    else:
        answer.set_result(done.result())
