"""Where a search is computed: in the retriever's thread, or on the spot where it is cheap."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Hit, Ranking, Retriever
from searchrl.serving.backend import Backend
from tests.serving_fixtures import corpus


class Computing(Bm25Retriever):
    """Notes its thread, and computes for as long as it is told."""

    def __init__(self) -> None:
        super().__init__(corpus())
        self.seconds = 0.0
        self.threads: list[threading.Thread] = []

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        self.threads.append(threading.current_thread())
        end = time.thread_time() + self.seconds * len(queries)
        while time.thread_time() < end:
            pass
        return super().rank(queries, k)


def play(retriever: Retriever, script: Callable[[Backend], Awaitable[Any]]) -> None:
    async def run() -> None:
        ready = threading.Event()
        backend = Backend(lambda _: retriever, ready.set, lambda _: None)
        assert backend.find(["Chur"], 1) is None
        backend.start()
        await asyncio.to_thread(ready.wait, 10)
        await script(backend)
        backend.stop()

    asyncio.run(run())


def test_a_search_is_computed_on_the_spot_once_it_is_known_to_be_cheap() -> None:
    retriever = Computing()

    async def script(backend: Backend) -> None:
        assert backend.find(["Chur"], 1) is None
        expected = await backend.search(["Chur"], 1)
        for _ in range(100):  # the first may have compiled something
            await backend.search(["Chur"], 1)
        assert retriever.threads[-1] is not threading.current_thread()
        assert backend.find(["Chur"], 1) == expected
        assert retriever.threads[-1] is threading.current_thread()
        assert backend.find(["Chur"] * 512, 1) is None

    play(retriever, script)


def test_a_search_that_became_expensive_goes_back_to_its_thread() -> None:
    retriever = Computing()

    async def script(backend: Backend) -> None:
        for _ in range(100):
            await backend.search(["Chur"], 1)
        retriever.seconds = 0.01
        assert backend.find(["Chur"], 1) is not None
        assert backend.find(["Chur"], 1) is None

    play(retriever, script)


def test_what_may_wait_for_others_is_never_awaited_on_the_spot() -> None:
    class Asking:
        async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return [[] for _ in queries]

    async def script(backend: Backend) -> None:
        for _ in range(3):
            assert await backend.search(["Chur"], 1) == [[]]
            assert backend.find(["Chur"], 1) is None

    play(Asking(), script)
