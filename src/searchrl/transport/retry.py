"""Which failures of a request are worth another try, and how long to wait before it."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

TRIES = 4
RETRIED_STATUS = frozenset({408, 429, 502, 503, 504})
"""Answers that say "not now"; any other error would come again."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0


def backoff(failures: int, retry_after: str | None = None) -> float:
    """Seconds to wait after this many failures of one request.

    Full jitter: uniform between 0 and a bound that doubles with every failure, from 0.5 to 8
    seconds, so that clients which failed together do not come back together. A server that names a
    time in ``Retry-After`` is never asked before it.
    """
    bound = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (failures - 1))
    return random.uniform(0.0, bound) + seconds_asked_for(retry_after)


def seconds_asked_for(retry_after: str | None) -> float:
    """The wait that a ``Retry-After`` header names, as seconds or as a date; else 0."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        seconds = _seconds_until(retry_after)
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _seconds_until(date: str) -> float:
    try:
        then = parsedate_to_datetime(date)
    except ValueError:
        return 0.0
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return (then - datetime.now(UTC)).total_seconds()
