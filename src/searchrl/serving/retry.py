"""When to try a failed call again: full jitter, and what the service itself asks for."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

TRIES = 4
FIRST_SECONDS = 0.5
MOST_SECONDS = 8.0


def pause(failures: int, draw: random.Random) -> float:
    """Seconds to wait after so many failed tries: anything up to a bound that doubles each time.

    Drawn from the whole range ("full jitter"), so that callers who failed together come back apart.
    """
    return draw.uniform(0.0, min(MOST_SECONDS, FIRST_SECONDS * 2 ** (failures - 1)))


def seconds_asked(retry_after: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks for, in either of its forms; else 0."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        seconds = _until(retry_after)
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _until(date: str) -> float:
    try:
        then = parsedate_to_datetime(date)
    except ValueError:
        return 0.0
    return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - datetime.now(
        UTC
    ).timestamp()
