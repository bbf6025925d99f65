"""An event loop whose clock jumps over every wait, so that minutes of retries take no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _JumpingSelector(selectors.DefaultSelector):
    """Reports what is ready now, and turns the time it was allowed to wait into clock time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        self.now += timeout
        return super().select(0)


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """Runs without waiting; only for code that waits for the clock and for nothing outside."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_fast(main: Coroutine[Any, Any, Result]) -> tuple[Result, float]:
    """Run a coroutine in fake time; returns its result and the seconds that passed in it."""

    async def timed() -> tuple[Result, float]:
        started = asyncio.get_running_loop().time()
        result = await main
        return result, asyncio.get_running_loop().time() - started

    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(timed())
