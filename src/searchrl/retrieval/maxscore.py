"""The best passages for a query by words, without adding up what cannot be among them.

Terms are taken from the rarest on. Once a passage that holds none of the terms so far could not
reach the k-th best score any more, the frequent ones, whose postings are most of the work, are only
looked up for the passages that still can (MaxScore: Turtle and Flood, 1995). A term adds at most
its idf, so no bounds are stored.

What is left is added up anew, term by term in the order of the query and in single precision, as
adding up everything would: the answer is the same to the last bit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
_SLACK = 1e-4
"""By how much, relatively, single precision may be off in sums of at most 4,096 words."""
_FEW = 1_024
"""So few postings are added up at less cost than it takes to see whether they have to be."""


@dataclass(frozen=True, slots=True)
class TermPostings:
    """One term of a query.

    Attributes:
        rows: the passages that hold it, ascending.
        weights: what it adds to each.
    """

    rows: Rows
    weights: Floats


class Accumulator:
    """Finds the rows that can be among the best; keeps one number a passage for each thread.

    Args:
        passages: how many there are.
    """

    def __init__(self, passages: int) -> None:
        self._passages = passages
        self._threads = threading.local()

    def candidates(self, terms: Sequence[TermPostings], k: int) -> npt.NDArray[np.intp] | None:
        """Rows among which the ``k`` best are, distinct; ``None`` where fewer than ``k`` match.

        Args:
            terms: all words of the query that any passage holds; one that comes twice, twice.
            k: how many are wanted.
        """
        ordered = sorted(terms, key=lambda term: len(term.rows))
        bounds = [self._bound(len(term.rows)) for term in ordered]
        rest = np.append(np.cumsum(bounds[::-1])[::-1], 0.0)
        sums = self._sums()
        added: list[Rows] = []
        try:
            taken, least = self._add_rarest(ordered, rest, sums, added, k)
            rows = np.concatenate(added) if added else np.zeros(0, np.int32)
            found = np.unique(rows[sums[rows] + rest[taken] >= least])
            partial = sums[found]
        finally:
            for each in added:
                sums[each] = 0
        if len(found) < k:
            return None
        for place in range(taken, len(ordered)):
            partial += looked_up(ordered[place], found)
            least = max(least, _kth(partial, k) * (1 - _SLACK))
            kept = partial + rest[place + 1] >= least
            found, partial = found[kept], partial[kept]
        return found.astype(np.intp)

    def _add_rarest(
        self,
        ordered: Sequence[TermPostings],
        rest: npt.NDArray[np.float64],
        sums: Floats,
        added: list[Rows],
        k: int,
    ) -> tuple[int, float]:
        """Add up terms until the others cannot lift a passage into the best by themselves.

        Returns:
            How many terms were added up, and a score that the k-th best reaches.
        """
        least = 0.0
        for place, term in enumerate(ordered):
            if added and len(term.rows) > _FEW:
                rows = np.concatenate(added)
                # A passage stands here once for each term, so the k-th best is at worst there.
                depth = k * len(added)
                if len(rows) >= depth:
                    least = _kth(sums[rows], depth) * (1 - _SLACK)
                    if rest[place] < least:
                        return place, least
            sums[term.rows] += term.weights
            added.append(term.rows)
        return len(ordered), least

    def _bound(self, holders: int) -> float:
        """The idf of a term that so many passages hold, which no weight of it exceeds."""
        idf = math.log1p((self._passages - holders + 0.5) / (holders + 0.5))
        return idf * (1 + _SLACK)

    def _sums(self) -> Floats:
        sums: Floats | None = getattr(self._threads, "sums", None)
        if sums is None:
            sums = self._threads.sums = np.zeros(self._passages, np.float32)
        return sums


def looked_up(term: TermPostings, rows: npt.NDArray[np.integer]) -> Floats:
    """What a term adds to each of some rows, ascending."""
    places = np.searchsorted(term.rows, rows.astype(np.int32, copy=False))
    places = np.minimum(places, len(term.rows) - 1)
    return np.where(term.rows[places] == rows, term.weights[places], np.float32(0))


def added_up(terms: Sequence[TermPostings], rows: npt.NDArray[np.intp]) -> Floats:
    """The scores of some rows, ascending: the same sums as over all rows."""
    scores = np.zeros(len(rows), np.float32)
    for term in terms:
        scores += looked_up(term, rows)
    return scores


def _kth(scores: Floats, k: int) -> float:
    """The k-th highest of at least k scores."""
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])
