"""The inverted index of BM25: for every term the rows that hold it, each with its finished weight.

Weights are Lucene's, its one-byte document lengths included, so its published numbers are met. A
query adds up a few weights and computes nothing else. All arrays are mapped: an index of any size
opens at once, and processes that search the same one share it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchrl.data.byte_strings import WORD_BYTES, ByteStrings
from searchrl.data.storage import ARRAY_ERRORS
from searchrl.errors import IntegrityError
from searchrl.retrieval.maxscore import LEVELS, TermPostings
from searchrl.retrieval.term_runs import encoded

WEIGHTS, ROWS, STARTS, TERMS, KEYS = "weights.npy", "rows.npy", "starts.npy", "terms", "keys.npy"
MOST, TABLED, TABLES = "most.npy", "tabled.npy", "tables.npy"
SMALL = 20_000
"""In so few passages it takes longer to see which could be among the best than to score all."""


class Postings:
    """What ``write_postings`` wrote.

    Attributes:
        weights: one a posting, float32.
        rows: the passages they belong to, int32.
        starts: where the postings of each term start, shape ``(terms + 1,)``.
        most: the largest weight of each term, float32.
        tables: of the most frequent terms, see ``TermPostings.table``, shape
            ``(tables, passages)``.
    """

    def __init__(self, directory: Path, in_memory: bool = False) -> None:
        """Map the arrays, or read them.

        Raises:
            IntegrityError: a file is missing, cut short, or does not belong to the others.
        """
        self.weights, self.rows, self.starts, self.most, self._keys, tabled = (
            load(directory / name, kind, in_memory)
            for name, kind in (
                (WEIGHTS, np.float32), (ROWS, np.int32), (STARTS, np.int64),
                (MOST, np.float32), (KEYS, np.uint64), (TABLED, np.int64),
            )
        )  # fmt: skip
        self.tables = load(directory / TABLES, np.uint8, in_memory, dimensions=2)
        self._terms = ByteStrings(directory, TERMS)
        if (
            not len(self.starts) - 1 == len(self.most) == len(self._keys) == len(self._terms)
            or not len(self.weights) == len(self.rows) == self.starts[-1]
            or len(self.tables) != len(tabled)
        ):
            raise IntegrityError(f"{directory}: its arrays differ in length; build it again")
        self._table_of = {number: place for place, number in enumerate(tabled.tolist())}
        self._step = table_step(self.most, tabled)

    def scores(self, terms: Sequence[str], passages: int) -> npt.NDArray[np.float32]:
        """Sums of weights, shape ``(passages,)``; a term that comes twice counts twice."""
        scores = np.zeros(passages, np.float32)
        for number in self._numbers(terms):
            place = slice(self.starts[number], self.starts[number + 1])
            np.add.at(scores, self.rows[place], self.weights[place])
        return scores

    def terms(self, terms: Sequence[str]) -> list[TermPostings]:
        """The postings of the terms that any passage holds; a term that comes twice, twice."""
        numbers = self._numbers(terms)
        places = np.array(numbers, np.intp)
        starts, ends = self.starts.take(places).tolist(), self.starts.take(places + 1).tolist()
        found = zip(numbers, starts, ends, self.most.take(places).tolist(), strict=True)
        return [
            TermPostings(
                self.rows[start:end], self.weights[start:end], most, self._table(number), self._step
            )
            for number, start, end, most in found
        ]

    def _table(self, number: int) -> npt.NDArray[np.uint8] | None:
        at = self._table_of.get(number)
        return None if at is None else self.tables[at]

    def _numbers(self, terms: Sequence[str]) -> list[int]:
        """The places of the terms in their order, those left out that no passage holds."""
        sought = [encoded(term) for term in terms]
        keys = term_keys(sought)
        numbers = map(self._number, sought, keys, self._keys.searchsorted(keys).tolist())
        return [number for number in numbers if number is not None]

    def _number(self, term: bytes, key: np.uint64, place: int) -> int | None:
        """The place of a term, if it has one: ``place`` or one after it that starts as it does."""
        keys = self._keys
        if place == len(keys) or keys[place] != key:
            return None
        # A key holds a shorter term whole: no term has a byte of 0.
        if len(term) < WORD_BYTES or self._terms[place] == term:
            return place
        end = int(keys.searchsorted(key, side="right"))
        place = bisect_left(self._terms, term, place, end)
        return place if place < end and self._terms[place] == term else None


def table_step(most: npt.NDArray[np.float32], tabled: npt.NDArray[np.int64]) -> float:
    """What 1 stands for in the tables: all weights are at most ``LEVELS`` steps."""
    return float(most[tabled].max(initial=0)) / LEVELS


def term_keys(terms: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """The first eight bytes of terms as numbers, which sort as they do.

    Most terms differ there, and comparing numbers is quick.
    """
    return np.array(terms, f"S{WORD_BYTES}").view(">u8").astype(np.uint64)


def load(path: Path, dtype: Any, in_memory: bool = False, dimensions: int = 1) -> npt.NDArray[Any]:
    """Map or read an array.

    Raises:
        IntegrityError: it is missing, damaged, or of another form.
    """
    try:
        mapped = np.load(path, mmap_mode=None if in_memory else "r", allow_pickle=False)
    except ARRAY_ERRORS as error:
        raise IntegrityError(f"{path}: cannot be read ({error}); build it again") from error
    if mapped.ndim != dimensions or mapped.dtype != dtype:
        raise IntegrityError(f"{path}: not the array that was written; build it again")
    # A plain view keeps the mapping and drops np.memmap's cost at every slice.
    plain: npt.NDArray[Any] = mapped.view(np.ndarray)
    return plain
