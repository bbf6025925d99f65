"""The batcher: who waits for whom, what is computed, and what nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.data.passages import Passage
from searchrl.errors import InfrastructureError
from searchrl.retrieval.protocol import Hit
from searchrl.serving.batching import Batcher, OverloadedError


class Recorder:
    """Notes what a batcher reports."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.loads: list[int] = []

    def batch(self, queries: int) -> None:
        self.batches.append(queries)

    def load(self, queries: int) -> None:
        self.loads.append(queries)


class Engine:
    """A search that a test holds back with ``gate`` and whose calls it reads afterwards."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.cheap = False

    def find(self, queries: Sequence[str], k: int) -> list[list[Hit]] | None:
        return [hits(query, k) for query in queries] if self.cheap else None

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append((list(queries), k))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [hits(query, k) for query in queries]


def hits(query: str, k: int) -> list[Hit]:
    return [Hit(Passage(f"{query}-{rank}", "", ""), 1.0 / rank) for rank in range(1, k + 1)]


def play(
    script: Callable[[Engine, Batcher, Recorder], Awaitable[Any]],
    capacity: int = 100,
    batch: int = 8,
) -> Any:
    async def run() -> Any:
        engine, recorder = Engine(), Recorder()
        batcher = Batcher(engine, capacity, batch, recorder)
        async with asyncio.timeout(5):
            return await script(engine, batcher, recorder)

    return asyncio.run(run())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_lone_request_does_not_wait_for_company() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        assert await batcher.submit(["a"], 2) == [hits("a", 2)]
        assert engine.calls == [(["a"], 2)]

    play(script)


def test_what_came_meanwhile_is_one_batch() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        engine.gate.clear()
        first = batcher.submit(["a"], 1)
        await settle()
        others = [batcher.submit([name], 2) for name in "bcd"]
        engine.gate.set()
        assert await first == [hits("a", 1)]
        assert await asyncio.gather(*others) == [[hits(name, 2)] for name in "bcd"]
        assert engine.calls == [(["a"], 1), (["b", "c", "d"], 2)]
        assert recorder.batches == [1, 3]

    play(script)


def test_a_query_of_several_requests_is_computed_once_with_the_largest_k() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        small, large = batcher.submit(["a", "b", "a"], 1), batcher.submit(["b"], 3)
        assert await small == [hits("a", 1), hits("b", 1), hits("a", 1)]
        assert await large == [hits("b", 3)]
        assert engine.calls == [(["a", "b"], 3)]

    play(script)


def test_a_large_request_is_cut_and_comes_back_whole() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        queries = [str(number) for number in range(20)]
        assert await batcher.submit(queries, 1) == [hits(query, 1) for query in queries]
        assert [len(called) for called, _ in engine.calls] == [8, 8, 4]

    play(script)


def test_no_query_needs_no_search() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        assert await batcher.submit([], 3) == []
        assert engine.calls == []

    play(script)


def test_T_B08_what_does_not_fit_is_turned_away_and_room_comes_back() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        engine.gate.clear()
        admitted = [batcher.submit([str(number)], 1) for number in range(4)]
        await settle()
        with pytest.raises(OverloadedError) as caught:
            batcher.submit(["late"], 1)
        assert 1 <= caught.value.retry_after <= 30
        engine.gate.set()
        await asyncio.gather(*admitted)
        assert await batcher.submit(["late"], 1) == [hits("late", 1)]
        await settle()
        assert recorder.loads[-1] == 0
        assert max(recorder.loads) == 4

    play(script, capacity=4)


def test_a_request_larger_than_the_capacity_is_let_in_alone() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        assert len(await batcher.submit(["a", "b", "c", "d"], 1)) == 4

    play(script, capacity=2)


def test_T_B09_what_is_given_up_is_not_computed_and_makes_room() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        engine.gate.clear()
        running = batcher.submit(["running"], 1)
        await settle()
        given_up, waiting = batcher.submit(["given up"], 1), batcher.submit(["waiting"], 1)
        given_up.cancel()
        running.cancel()
        await settle()
        assert recorder.loads[-1] == 1
        engine.gate.set()
        assert await waiting == [hits("waiting", 1)]
        assert [called for called, _ in engine.calls] == [["running"], ["waiting"]]

    play(script)


@pytest.mark.parametrize("error", [InfrastructureError("down"), ValueError("a bug")])
def test_a_failed_batch_fails_its_requests_and_no_other(error: Exception) -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        engine.error = error
        failed = [batcher.submit([name], 1) for name in "ab"]
        for answer in failed:
            with pytest.raises(type(error), match=str(error)):
                await answer
        engine.error = None
        assert await batcher.submit(["c"], 1) == [hits("c", 1)]
        await settle()
        assert recorder.loads[-1] == 0

    play(script)


def test_what_is_cheap_is_found_on_the_spot_where_nobody_else_waits() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        assert batcher.find(["a"], 1) is None
        engine.cheap = True
        assert batcher.find(["a", "b"], 2) == [hits("a", 2), hits("b", 2)]
        assert batcher.find(["a", "a"], 2) is None
        assert batcher.find([], 2) is None
        assert recorder.batches == [2]
        engine.gate.clear()
        first = batcher.submit(["c"], 1)
        assert batcher.find(["a"], 1) is None
        engine.gate.set()
        assert await first == [hits("c", 1)]
        await settle()
        assert batcher.find(["a"], 1) == [hits("a", 1)]

    play(script)


async def answered_together(engine: Engine, batcher: Batcher, names: str, seconds: float) -> None:
    """A batch of its own that takes a while."""
    engine.gate.clear()
    together = [batcher.submit([name], 1) for name in names]
    await asyncio.sleep(seconds)
    engine.gate.set()
    await asyncio.gather(*together)


def test_clients_that_were_answered_together_are_computed_together_again() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        await answered_together(engine, batcher, "abc", 0.5)
        answers = []
        for name in "def":
            answers.append(batcher.submit([name], 1))
            await asyncio.sleep(0.001)
        await asyncio.gather(*answers)
        assert recorder.batches == [3, 3]

    play(script)


def test_who_does_not_come_back_is_not_waited_for_long() -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        await answered_together(engine, batcher, "abc", 0.05)
        started = asyncio.get_running_loop().time()
        await batcher.submit(["d"], 1)
        # A tenth of what the batch took; the test's own machine may be slow.
        assert asyncio.get_running_loop().time() - started < 0.5
        await asyncio.sleep(0.02)
        engine.gate.clear()
        late = batcher.submit(["e"], 1)
        await settle()
        assert engine.calls[-1] == (["e"], 1)
        engine.gate.set()
        await late

    play(script)


requests = st.lists(
    st.tuples(st.lists(st.sampled_from("abcdefg"), max_size=12), st.integers(1, 5)), max_size=12
)


@given(requests, st.integers(1, 6), st.sets(st.integers(0, 11)))
def test_T_B06_everybody_gets_what_they_would_get_alone(
    asked: list[tuple[list[str], int]], batch: int, given_up: set[int]
) -> None:
    async def script(engine: Engine, batcher: Batcher, recorder: Recorder) -> None:
        answers = [batcher.submit(queries, k) for queries, k in asked]
        for number, answer in enumerate(answers):
            if number in given_up:
                answer.cancel()
        for number, ((queries, k), answer) in enumerate(zip(asked, answers, strict=True)):
            if number not in given_up or not queries:
                assert await answer == [hits(query, k) for query in queries]
        await settle()
        assert (recorder.loads or [0])[-1] == 0

    play(script, capacity=10_000, batch=batch)
