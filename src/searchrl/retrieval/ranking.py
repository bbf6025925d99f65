"""The one order of results: score descending, then id ascending, exact at the last place too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.intp]
Scores = npt.NDArray[np.floating]
Ranks = npt.NDArray[np.int32]


def best_rows(scores: Scores, ranks: Ranks, k: int) -> Rows:
    """Rows of the ``min(k, N)`` highest scores, best first.

    Args:
        scores: shape ``(N,)``.
        ranks: place of each row in the order of the ids, shape ``(N,)``.
        k: how many.
    """
    if k >= len(scores):
        return in_order(np.arange(len(scores)), scores, ranks)
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, level = np.flatnonzero(scores > kth), np.flatnonzero(scores == kth)
    room = k - len(above)
    if room < len(level):
        level = level[np.argpartition(ranks[level], room - 1)[:room]]
    chosen = np.concatenate([above, level])
    return in_order(chosen, scores[chosen], ranks[chosen])


def in_order(rows: Rows, scores: Scores, ranks: Ranks) -> Rows:
    """``rows``, sorted by their scores and ranks, which all have the same shape."""
    return rows[np.lexsort((ranks, -scores))]
