"""A limit on how often a service is asked, for services that count."""

from __future__ import annotations

import asyncio


class Pace:
    """Lets requests go one after the other, at most so many a second.

    Args:
        per_second: how many; ``None`` for as many as there are.
    """

    def __init__(self, per_second: float | None) -> None:
        self._gap = 0.0 if per_second is None else 1.0 / per_second
        self._next = 0.0

    async def turn(self) -> None:
        """Return when the next request may go."""
        now = asyncio.get_running_loop().time()
        start = max(now, self._next)
        self._next = start + self._gap
        if start > now:
            await asyncio.sleep(start - now)
