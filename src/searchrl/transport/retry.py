"""Which failures of a request are worth another try, and how long to wait before it."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

TRIES = 4
RETRIED_STATUS = frozenset({429, 502, 503, 504})
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
    """The wait that a ``Retry-After`` header names, as seconds or as a date; 0 for none."""
    if retry_after is None:
        return 0.0
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
