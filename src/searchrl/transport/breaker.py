"""When to stop asking a service that is down, and when to try it again.

A state machine without a clock of its own: every method is told the time, in seconds of any
monotonic clock. Closed, it lets everything through. It opens when a service has failed often
enough; open, it lets one request through now and then. Any sign of life closes it.
"""

from __future__ import annotations

from collections import deque

CONSECUTIVE_FAILURES = 5
WINDOW = 20
"""The breaker also opens when half of this many latest requests failed."""
PROBE_INTERVAL = 10.0
"""Seconds between requests that try whether an open breaker's service is back."""


class Breaker:
    """Counts the outcomes of requests to one service."""

    def __init__(self) -> None:
        self._latest: deque[bool] = deque(maxlen=WINDOW)
        self._failures_in_a_row = 0
        self._down_since: float | None = None
        self._next_probe = 0.0

    def down_for(self, now: float) -> float | None:
        """Seconds since the breaker opened; ``None`` while it is closed."""
        return None if self._down_since is None else now - self._down_since

    def admit(self, now: float) -> float:
        """Ask to send a request.

        Returns:
            0 when it may go out now, and then it has to; else the seconds after which to ask again.
        """
        if self._down_since is None:
            return 0.0
        if now < self._next_probe:
            return self._next_probe - now
        # A probe that is never heard of again delays the next one and blocks nothing.
        self._next_probe = now + PROBE_INTERVAL
        return 0.0

    def record(self, alive: bool, now: float) -> None:
        """Note the outcome of a request: whether the service showed a sign of life."""
        if alive and self._down_since is not None:
            self._latest.clear()
            self._down_since = None
        self._latest.append(alive)
        self._failures_in_a_row = 0 if alive else self._failures_in_a_row + 1
        if self._down_since is None and self._is_failing():
            self._down_since = now
            self._next_probe = now + PROBE_INTERVAL

    def _is_failing(self) -> bool:
        failed = self._latest.count(False)
        return self._failures_in_a_row >= CONSECUTIVE_FAILURES or (
            len(self._latest) == WINDOW and 2 * failed >= WINDOW
        )
