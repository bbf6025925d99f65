"""Metric services beside ``metrics.jsonl``: they may fail, hang or be missing; training goes on.

Each service has a thread of its own, which imports it, opens it and writes to it, and a bounded
queue before that. Nothing a service does reaches the caller: what does not fit the queue is dropped
and counted, an error ends the service's part, and closing waits a bounded time. Each service warns
once when it fails and once, at the end, of what it has not written.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

_QUEUE = 256
CLOSE_SECONDS = 10.0
"""How long the end of a run waits for its services, all of them together."""


class Sink(Protocol):
    """An open metric service."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step."""

    def close(self) -> None:
        """Bring what was written to where it belongs."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a service is told of a run.

    Attributes:
        project: where runs are gathered.
        name: the run's own name.
        identity: the same whenever the run is resumed, and no other run's.
        directory: where local services write.
        config: the resolved recipe.
        step: steps that are done already.
    """

    project: str
    name: str
    identity: str
    directory: Path
    config: Mapping[str, Any]
    step: int


Opener = Callable[[RunFacts], Sink]


class BackgroundSink:
    """A service behind a thread and a queue.

    Args:
        name: for warnings.
        opener: imports and opens the service; runs in the thread.
        facts: what it is told.
        capacity: steps that wait at most.
    """

    def __init__(self, name: str, opener: Opener, facts: RunFacts, capacity: int = _QUEUE) -> None:
        self.name = name
        self.dropped = 0
        """Steps that were not written, as far as is known by now."""
        self._pending: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(capacity)
        self._abandoned = threading.Event()
        # A daemon: a service that hangs does not keep the process from ending.
        self._thread = threading.Thread(
            target=self._work, args=(opener, facts), name=f"sink-{name}", daemon=True
        )
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand over one step's finite numbers; never waits."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        try:
            self._pending.put_nowait((step, finite))
        except queue.Full:
            self.dropped += 1

    def close(self, deadline: float) -> None:
        """Let the service finish, until ``time.monotonic()`` reaches the deadline."""
        try:
            self._pending.put(None, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            self._abandoned.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._abandoned.set()
            self.dropped += self._pending.qsize()
            logger.warning("%s: did not finish in time and is left behind", self.name)
        if self.dropped:
            logger.warning("%s: %d steps were not written", self.name, self.dropped)

    def _work(self, opener: Opener, facts: RunFacts) -> None:
        taken, ended = 0, False
        try:
            sink = opener(facts)
            while (item := self._pending.get()) is not None and not self._abandoned.is_set():
                taken = 1
                sink.log(*item)
                taken = 0
            ended = True
            sink.close()
        except BaseException as error:  # noqa: BLE001 - not training's; some services exit
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("%s: %s; metrics are in metrics.jsonl all the same", self.name, reason)
            self.dropped += taken
            if not ended:
                self._discard()

    def _discard(self) -> None:
        """Keep emptying the queue, so that its end is found."""
        while self._pending.get() is not None:
            self.dropped += 1


class Sinks:
    """All services of a run."""

    def __init__(self, sinks: Sequence[BackgroundSink]) -> None:
        self._sinks = sinks

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand one step to every service."""
        for sink in self._sinks:
            sink.log(step, metrics)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait for all services, a bounded time together."""
        deadline = time.monotonic() + seconds
        for sink in self._sinks:
            sink.close(deadline)
