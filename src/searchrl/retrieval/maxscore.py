"""The best passages for a query by words, without adding up what cannot be among them.

Terms are taken from the rarest on. Once a passage that holds none of the terms so far could not
reach the k-th best score any more, the frequent ones, whose postings are most of the work, are only
looked up for the passages that still can (MaxScore: Turtle and Flood, 1995).

The most frequent terms have tables: for every passage one byte, a bound of what the term adds to
it. Where they alone might lift a passage among the best, their tables are added up window by window
and whatever stays below the k-th best score is skipped, in the spirit of block-max indexes (Ding
and Suel, 2011), with blocks of one passage: a sum of bytes takes a processor less time than to
find out which blocks it could leave out.

What is left is added up anew, term by term in the order of the query and in single precision, as
adding up everything would: the answer is the same to the last bit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
LEVELS = 63
"""Highest entry of a table: four of them add up within a byte."""
_SLACK = 1e-4
"""By how much, relatively, single precision may be off in sums of at most 4,096 words."""
_FEW = 16_384
"""So few postings are added up at less cost than it takes to see whether they have to be."""
_MANY = 8
"""Times ``k`` rows in a window: above that it pays to raise the k-th best score first."""
_ENOUGH = 4
"""Times ``k`` rows: so few are scored at less cost than it takes to leave some out."""
_SPARSE = 16
"""Of so many sums one is not 0: above that it takes less time to clear them all."""
_COLUMNS = 512
"""So many scores hold the highest of many, nearly, if each is the highest of its share."""
_WINDOW = 1 << 18
"""Passages whose sums are taken at once; they fit a core's cache."""


@dataclass(frozen=True, slots=True)
class TermPostings:
    """One term of a query.

    Attributes:
        rows: the passages that hold it, ascending.
        weights: what it adds to each.
        most: the largest of the weights.
        table: for a frequent term, for every passage, the least number of ``step`` that is not
            below what it adds there; 0 where it is not. Terms without one are rarer.
        step: of the table; the same for all terms.
    """

    rows: Rows
    weights: Floats
    most: float
    table: Bytes | None = None
    step: float = 0.0


def fill_table(entries: Bytes, rows: Rows, weights: Floats, step: float) -> None:
    """Enter postings into a table, see ``TermPostings.table``.

    Args:
        entries: one for every passage, 0 before.
        rows: of the postings.
        weights: of the postings.
        step: at least a ``LEVELS``-th of any weight.
    """
    entries[rows] = np.minimum(np.ceil(weights / step), LEVELS)


class Accumulator:
    """Finds the rows that can be among the best; keeps one number a passage for each thread.

    Args:
        passages: how many there are.
    """

    def __init__(self, passages: int) -> None:
        self._passages = passages
        self._threads = threading.local()

    def candidates(self, terms: Sequence[TermPostings], k: int) -> Rows | None:
        """Rows among which the ``k`` best are, distinct; ``None`` where fewer than ``k`` match.

        Args:
            terms: all words of the query that any passage holds; one that comes twice, twice.
            k: how many are wanted.
        """
        sums: Floats | None = getattr(self._threads, "sums", None)
        if sums is None:
            sums = self._threads.sums = np.zeros(self._passages, np.float32)
        search = _Search(terms, k, sums)
        try:
            found = search.candidates()
        finally:
            if _SPARSE * sum(map(len, search.added)) > len(sums):
                sums.fill(0)
            else:
                for each in search.added:
                    sums[each] = 0
        return found if len(found) >= k else None


class _Search:
    """One query being answered.

    Attributes:
        added: rows of the terms that were added up, whose sums are not 0.
        least: a score that the k-th best reaches; 0 until one is known.
    """

    def __init__(self, terms: Sequence[TermPostings], k: int, sums: Floats) -> None:
        self._ordered = ordered = sorted(terms, key=lambda term: len(term.rows))
        self._sparse = [term for term in ordered if term.table is None]
        self._tables = [term.table for term in ordered if term.table is not None]
        self._step = max((term.step for term in ordered), default=0.0) * (1 + _SLACK)
        self._gap = self._step * len(self._tables)
        bounds = [term.most * (1 + _SLACK) for term in reversed(ordered)]
        self._rest = list(accumulate(bounds, initial=0.0))[::-1]
        self._k = k
        self._sums = sums
        self._passages = len(sums)
        self.added: list[Places] = []
        self.least = 0.0

    def candidates(self) -> Rows:
        """Distinct rows, ascending; all that match where the k-th best score is not known."""
        taken, rows, partial = self._add_rarest()
        if len(rows) > _FEW:
            if taken == len(self._sparse):
                self._learn(rows, partial)
        elif len(rows) > self._depth():
            self._raise(_kth(partial, self._depth()))
        found = self._look_up(*self._kept(rows, partial, self._rest[taken]), taken)
        if self._tables and self._rest[taken] >= self.least:
            found = _distinct(np.concatenate([found, self._scan()]))
        return found

    def _add_rarest(self) -> tuple[int, Places, Floats]:
        """Add up terms until the others cannot lift a passage into the best by themselves.

        Returns:
            How many terms were added up; the rows that they may have among the best, each once for
            a term at most; and the sums of those.
        """
        rows = np.zeros(0, np.intp)
        for place, term in enumerate(self._sparse):
            if self.added and len(term.rows) > _FEW:
                partial = self._sums.take(rows)
                self._learn(rows, partial)
                if self._rest[place] < self.least:
                    return place, rows, partial
                rows, _ = self._kept(rows, partial, self._rest[place])
            places = term.rows.astype(np.intp)
            np.add.at(self._sums, places, term.weights)
            self.added.append(places)
            # A row that no rarer term has gets among the best by this weight and what follows only.
            few = self.least - self._rest[place + 1]
            new = places if few <= 0 else places.take(np.flatnonzero(term.weights >= few))
            rows = np.concatenate([rows, new])
        return len(self._sparse), rows, self._sums.take(rows)

    def _kept(self, rows: Places, partial: Floats, rest: float) -> tuple[Places, Floats]:
        """Those of the rows, and of their sums, that ``rest`` more can lift among the best."""
        kept = np.flatnonzero(partial >= self.least - rest)
        return rows.take(kept), partial.take(kept)

    def _learn(self, rows: Places, partial: Floats) -> None:
        """Raise ``least`` to what the rows whose sums are highest so far reach at least."""
        depth = self._depth()
        if depth <= len(rows):
            found = _distinct(rows.take(_high(partial, depth)))
            scores = self._sums.take(found)
            self._add_tables(scores, found)
            for term in self._sparse[len(self.added) :]:
                scores += looked_up(term, found)
            self._raise(_kth(scores, self._k) - self._gap)

    def _depth(self) -> int:
        """Among so many of the added rows are k distinct ones: a row is there once for a term."""
        return self._k * len(self.added)

    def _raise(self, score: float) -> None:
        self.least = max(self.least, score * (1 - 2 * _SLACK))

    def _look_up(self, rows: Places, partial: Floats, taken: int) -> Rows:
        """Those of the rows that can be among the best, as the other terms are looked up.

        Args:
            rows: each once for a term that was added up at most.
            partial: their sums; used up.
            taken: how many terms were added up.
        """
        beyond = self._rest[len(self._sparse)]
        if len(rows) > self._depth():
            for place, entries in enumerate(self._tables, start=len(self._sparse) + 1):
                partial += entries.take(rows) * np.float32(self._step)
                rest = self._rest[taken] - beyond + self._rest[place]
                rows, partial = self._kept(rows, partial, rest)
        found = _distinct(rows)
        partial = self._sums.take(found)
        self._add_tables(partial, found)
        for place in range(taken, len(self._sparse) + 1):
            if place > taken:
                partial += looked_up(self._sparse[place - 1], found)
            if len(found) <= _ENOUGH * self._k:
                break
            self._raise(_kth(partial, self._k) - self._gap)
            kept = np.flatnonzero(partial >= self.least - (self._rest[place] - beyond))
            found, partial = found.take(kept), partial.take(kept)
        return found

    def _add_tables(self, partial: Floats, rows: Places | Rows) -> None:
        """Add to sums of rows what their entries stand for: too much by ``_gap`` at most."""
        if self._tables:
            bounds = self._wide(self._tables[0].take(rows))
            for entries in self._tables[1:]:
                bounds += entries.take(rows)
            partial += bounds * np.float32(self._step)

    def _scan(self) -> Rows:
        """Rows that the terms with tables can lift among the best by themselves."""
        rows, bounds = [], []
        for start in range(0, self._passages, _WINDOW):
            sums = self._window(start)
            if np.count_nonzero(sums >= self._cut()) > _MANY * self._k:
                highest = (start + self._highest(sums)).astype(np.int32)
                self._raise(_kth(added_up(self._ordered, highest), self._k))
            kept = np.flatnonzero(sums >= self._cut())
            rows.append(kept + start)
            bounds.append(sums[kept])
        found = np.concatenate(rows)[np.concatenate(bounds) >= self._cut()]
        return found.astype(np.int32)

    def _window(self, start: int) -> npt.NDArray[np.unsignedinteger]:
        """Sums of the tables' entries for the passages from ``start`` on."""
        parts = [entries[start : start + _WINDOW] for entries in self._tables]
        sums = self._wide(parts[0])
        for part in parts[1:]:
            sums += part
        return sums

    def _wide(self, entries: Bytes) -> npt.NDArray[np.unsignedinteger]:
        """A copy of entries in a form that holds the sum of those of all tables."""
        return entries.astype(np.min_scalar_type(LEVELS * len(self._tables)))

    def _cut(self) -> int:
        """The least sum of entries that reaches ``least``; 1, a match, where none is known."""
        return max(1, math.ceil(self.least / self._step))

    def _highest(self, sums: npt.NDArray[np.unsignedinteger]) -> Places:
        """Places of k of the highest sums, and of some of those that are level with the last."""
        low, high = self._cut(), LEVELS * len(self._tables)
        while low < high:
            middle = (low + high + 1) // 2
            enough = np.count_nonzero(sums >= middle) >= self._k
            low, high = (middle, high) if enough else (low, middle - 1)
        above, level = np.flatnonzero(sums > low), np.flatnonzero(sums == low)
        return np.sort(np.concatenate([above, level[: self._k]]))


def looked_up(term: TermPostings, rows: Rows) -> Floats:
    """What a term adds to each of some rows, ascending."""
    places = term.rows.searchsorted(rows)
    weights: Floats = term.weights.take(places, mode="clip")
    weights *= term.rows.take(places, mode="clip") == rows
    return weights


def added_up(terms: Sequence[TermPostings], rows: Rows) -> Floats:
    """The scores of some rows, ascending: the same sums as over all rows."""
    scores = np.zeros(len(rows), np.float32)
    for term in terms:
        scores += looked_up(term, rows)
    return scores


def _distinct(places: Rows | Places) -> Rows:
    """Each of the rows once, ascending: ``np.unique``, quicker for a few."""
    rows = places.astype(np.int32)
    rows.sort()
    first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    return rows[first]


def _kth(scores: Floats, k: int) -> float:
    """A score that k of at least k scores reach: the k-th highest or, of many, one near it."""
    highest = _columns(scores).max(axis=0) if _are_many(scores, k) else scores
    return float(np.partition(highest, len(highest) - k)[len(highest) - k])


def _high(scores: Floats, count: int) -> Places:
    """Places of ``count`` of at least as many scores: the highest or, of many, some near them."""
    if not _are_many(scores, count):
        return np.argpartition(scores, len(scores) - count)[len(scores) - count :]
    columns = _columns(scores)
    best = np.argpartition(columns.max(axis=0), _COLUMNS - count)[_COLUMNS - count :]
    places: Places = columns[:, best].argmax(axis=0) * _COLUMNS + best
    return places


def _are_many(scores: Floats, wanted: int) -> bool:
    """Whether columns pay, and so few are wanted that most lie in columns of their own."""
    return len(scores) > 2 * _COLUMNS > 16 * wanted


def _columns(scores: Floats) -> Floats:
    """The scores in columns, the last few left out: a maximum of each takes no time."""
    return scores[: len(scores) // _COLUMNS * _COLUMNS].reshape(-1, _COLUMNS)
