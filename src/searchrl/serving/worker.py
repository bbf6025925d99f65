"""A thread in which a model computes, so that the server's own thread can listen meanwhile.

The thread has an event loop of its own. Work that arrives while the model computes starts when it
is done, all of it in one turn of that loop, so a local model decodes it as one batch. Tokenizers
are used in this thread only; they cannot be shared with another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Worker:
    """Runs coroutines in a thread of its own, from :meth:`start` to :meth:`stop`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._began = threading.Event()

    @property
    def alive(self) -> bool:
        """Whether work would be done."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._began.wait()

    def stop(self) -> None:
        """End after what is being computed now."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine over there and return what it returns; cancelling cancels it there."""
        assert self._loop is not None, "start the worker first"
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _work(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._began.set()
            self._loop.run_forever()
