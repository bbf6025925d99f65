"""A circuit breaker: a service that is down is asked by one caller at a time, and not by all.

Closed, everybody may call. It opens after five failures in a row, or when half of the last twenty
calls failed. Open, nobody calls for ten seconds; then one caller probes (half-open), and its
outcome closes the breaker or opens it for another ten seconds. Only the outcome of a call that the
current state let in counts, so answers that were long under way cannot move it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

IN_A_ROW = 5
WINDOW = 20
SHARE = 0.5
SECONDS_OPEN = 10.0
_SECONDS_TO_LOOK_AGAIN = 0.5
"""How long a caller waits while another one probes."""


class State(Enum):
    """Who may call."""

    CLOSED = "closed"
    """Everybody."""
    OPEN = "open"
    """Nobody."""
    HALF_OPEN = "half open"
    """The one that probes."""


class Breaker:
    """The state of one service, as its callers see it.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._state = State.CLOSED
        self._era = 0
        self._opened = 0.0
        self._down_since: float | None = None
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)

    @property
    def state(self) -> State:
        """Who may call now, before anybody has asked."""
        return self._state

    @property
    def down_for(self) -> float:
        """Seconds since the service went down, its failed probes included; 0 while it is up."""
        return 0.0 if self._down_since is None else self._clock() - self._down_since

    def wait(self) -> float:
        """Seconds until it is worth asking again; 0 when a call may be made now."""
        if self._state is State.CLOSED:
            return 0.0
        if self._state is State.HALF_OPEN:
            return _SECONDS_TO_LOOK_AGAIN
        return max(0.0, self._opened + SECONDS_OPEN - self._clock())

    def enter(self) -> int:
        """Begin a call, which ``wait`` has allowed; the probe where the breaker was open.

        Returns:
            A permit to hand back with the outcome.

        Raises:
            RuntimeError: ``wait`` has not allowed it.
        """
        if self.wait() > 0:
            raise RuntimeError("the breaker lets nobody in; ask wait() first")
        if self._state is State.OPEN:
            self._move(State.HALF_OPEN)
        return self._era

    def leave(self, permit: int, good: bool | None) -> None:
        """End a call.

        Args:
            permit: from ``enter``.
            good: whether the service answered; ``None`` when the call was given up by its caller,
                which says nothing about the service.
        """
        if permit != self._era:
            return
        if self._state is State.HALF_OPEN:
            self._end_probe(good)
        elif good is not None:
            self._outcomes.append(good)
            if self._is_down():
                self._open()

    def _end_probe(self, good: bool | None) -> None:
        if good:
            self._move(State.CLOSED)
        elif good is None:
            self._move(State.OPEN)  # the time is up already, so the next caller probes
        else:
            self._open()

    def _is_down(self) -> bool:
        recent = list(self._outcomes)
        if len(recent) >= IN_A_ROW and not any(recent[-IN_A_ROW:]):
            return True
        return len(recent) == WINDOW and recent.count(False) >= SHARE * WINDOW

    def _open(self) -> None:
        self._opened = self._clock()
        self._down_since = self._opened if self._down_since is None else self._down_since
        self._move(State.OPEN)

    def _move(self, state: State) -> None:
        self._state = state
        self._down_since = None if state is State.CLOSED else self._down_since
        self._era += 1
        self._outcomes.clear()
