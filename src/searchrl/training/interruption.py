"""SIGINT and SIGTERM during training: stop soon, with nothing half done.

The first signal ends what may be thrown away (rollouts) at once, as ``KeyboardInterrupt``, and
waits for what may not (an update, a save). A second one waits for nothing.

Several processes have to stop at the same place, so there signals are held throughout and looked
for where all of them can agree.

A signal that the process was started to ignore stays ignored: a shell script starts what it runs in
the background without SIGINT and passes on, itself, the one signal that is meant for it.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.1

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Holds signals back where asked to."""

    def __init__(self) -> None:
        self._received = 0
        self._held = False

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self._received > 0

    @property
    def insisted(self) -> bool:
        """Whether a second signal has come, so that nothing may be waited for any more."""
        return self._received > 1

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Answer signals until the block ends; outside the main thread they stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with _answered_by(self._receive):
            yield

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Finish the block, and all that are around it, before a first signal takes effect.

        Raises:
            KeyboardInterrupt: one came meanwhile.
        """
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before
        if self._received and not before:
            raise KeyboardInterrupt

    async def until_received(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What some work comes to; ``None``, with its tasks ended, where a held signal came."""
        task = asyncio.ensure_future(work)
        while not self.received and not task.done():
            await asyncio.wait([task], timeout=_SECONDS_BETWEEN_LOOKS)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine as ``asyncio.run`` does, and end all its tasks in order on a signal.

        Raises:
            KeyboardInterrupt: a signal came while it was not held back.
        """
        finished: list[T] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(_report)
            # Kept from leaving this task: the loop would stop a second time, while it is ending
            # the tasks that the first time left.
            with suppress(KeyboardInterrupt):
                finished.append(await work)

        asyncio.run(main())
        if not finished:
            raise KeyboardInterrupt
        return finished[0]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received += 1
        if self.insisted or not self._held:
            raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Finish the block, which has to be short, whatever signals come; they count then.

    Raises:
        KeyboardInterrupt: one came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    with _answered_by(lambda number, frame: received.append(number)):
        yield
    if received:
        raise KeyboardInterrupt


@contextmanager
def _answered_by(answer: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, answer) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a loop does about an exception nobody waits for, but for one that a signal raised."""
    if not isinstance(context.get("exception"), KeyboardInterrupt):
        loop.default_exception_handler(context)
