"""CPU seconds by what they were spent on, each counted once: the innermost name that is open."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock


class Stopwatch:
    """Charges CPU time to the name opened last; to ``rest`` where none is open."""

    def __init__(self, rest: str) -> None:
        self.seconds: dict[str, float] = {}
        self._open = [rest]
        self._last = time.process_time()

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Charge to this name for the while, but for what is opened within."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def stop(self) -> dict[str, float]:
        """What was spent on each name until now."""
        self._turn()
        return self.seconds

    def watch(self, stack: ExitStack, owner: Any, function: str, name: str) -> None:
        """Charge every call of a function to a name, until the stack unwinds."""
        own = getattr(owner, function)
        stack.enter_context(mock.patch.object(owner, function, self._charged(own, name)))

    def _charged(self, own: Callable[..., Any], name: str) -> Callable[..., Any]:
        def charged(*positional: Any, **named: Any) -> Any:
            with self.on(name):
                return own(*positional, **named)

        return charged

    def _turn(self) -> None:
        now = time.process_time()
        name = self._open[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
