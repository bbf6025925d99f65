"""The inverted index of BM25: for every term the rows that hold it, each with its finished weight.

Weights are Lucene's, its one-byte document lengths included, so its published numbers are met. A
query adds up a few weights and computes nothing else.

A build streams: the corpus is analysed once into a spool on disk, then scattered to its place in
blocks. It holds the vocabulary and about 40 bytes a passage in memory; the arrays are mapped.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchrl.data.byte_strings import WORD_BYTES, ByteStrings, ByteStringsWriter, eight_bytes
from searchrl.data.corpus import Corpus
from searchrl.data.corpus_store import Progress
from searchrl.data.passages import Passage
from searchrl.data.storage import ARRAY_ERRORS
from searchrl.errors import IntegrityError
from searchrl.retrieval.analysis import EnglishAnalyzer
from searchrl.retrieval.maxscore import LEVELS, TermPostings, table

_WEIGHTS, _ROWS, _STARTS, _TERMS = "weights.npy", "rows.npy", "starts.npy", "terms"
_MOST, _TABLED, _TABLES = "most.npy", "tabled.npy", "tables.npy"
_SPOOL = "spool.tmp"
SMALL = 20_000
"""In so few passages it takes longer to see which could be among the best than to score all."""
_SHARE = 16
"""A term that one in so many passages holds has a table: two bytes a posting at most."""
_BLOCK = 1 << 22
"""Postings that are put in place at once."""
_PAIR = np.dtype([("term", "<u4"), ("count", "<u4")])


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """What the weights of one passage take from all of them.

    Attributes:
        passages: how many there are.
        words: in all of them together.
        holders: how many passages hold each term.
    """

    passages: int
    words: int
    holders: Counter[str]

    @property
    def mean_length(self) -> float:
        """Words of a passage, on average."""
        return self.words / self.passages


def indexed_text(passage: Passage) -> str:
    """Title and text as the one field that is indexed."""
    return f"{passage.title}\n{passage.text}"


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
        self.weights, self.rows, self.starts, self.most, tabled = (
            _load(directory / name, kind, in_memory)
            for name, kind in (
                (_WEIGHTS, np.float32), (_ROWS, np.int32), (_STARTS, np.int64),
                (_MOST, np.float32), (_TABLED, np.int64),
            )
        )  # fmt: skip
        self.tables = _load(directory / _TABLES, np.uint8, in_memory, dimensions=2)
        self._terms = ByteStrings(directory, _TERMS)
        if (
            not len(self.starts) - 1 == len(self.most) == len(self._terms)
            or not len(self.weights) == len(self.rows) == self.starts[-1]
            or len(self.tables) != len(tabled)
        ):
            raise IntegrityError(f"{directory}: its arrays differ in length; build it again")
        self._table_of = {number: place for place, number in enumerate(tabled.tolist())}
        self._step = _table_step(self.most, tabled)

        lengths = np.diff(self._terms.ends, prepend=0)
        # Most words differ in their first eight bytes, and comparing numbers is quick.
        self._starts_of_terms = eight_bytes(
            self._terms.bytes, self._terms.ends - lengths, lengths, 0
        )

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
        encoded = [_encode(term) for term in terms]
        keys = np.array(encoded, f"S{WORD_BYTES}").view(">u8").astype(np.uint64)
        places = self._starts_of_terms.searchsorted(keys).tolist()
        numbers = map(self._number, encoded, keys, places)
        return [number for number in numbers if number is not None]

    def _number(self, term: bytes, key: np.uint64, place: int) -> int | None:
        """The place of a term, if it has one: ``place`` or one after it that starts as it does."""
        starts = self._starts_of_terms
        if place == len(starts) or starts[place] != key:
            return None
        # A key holds a shorter term whole: no term has a byte of 0.
        if len(term) < WORD_BYTES or self._terms[place] == term:
            return place
        end = int(starts.searchsorted(key, side="right"))
        place = bisect_left(self._terms, term, place, end)
        return place if place < end and self._terms[place] == term else None


def write_postings(
    corpus: Corpus,
    analyzer: EnglishAnalyzer,
    k1: float,
    b: float,
    directory: Path,
    progress: Progress,
    whole: WordStatistics | None = None,
) -> None:
    """Index the passages of ``corpus``, title and text as one field, into ``directory``.

    The weight of term t in passage d is ``idf * tf / (tf + k1 * (1 - b + b * length / mean))`` with
    ``idf = ln(1 + (N - df + 0.5) / (df + 0.5))``, ``length`` as Lucene keeps it in one byte, and
    ``mean`` the exact mean length. N, df and ``mean`` are those of ``whole``, where ``corpus`` is a
    shard of it.
    """
    spool = directory / _SPOOL
    vocabulary, distinct, lengths = _analyse(corpus, analyzer, spool, progress)
    numbers = _write_terms(vocabulary, directory)
    pairs = np.memmap(spool, _PAIR, mode="r") if spool.stat().st_size else np.zeros(0, _PAIR)
    frequencies = np.zeros(len(vocabulary), np.int64)
    for start in range(0, len(pairs), _BLOCK):
        terms = numbers[pairs["term"][start : start + _BLOCK]]
        frequencies += np.bincount(terms, minlength=len(vocabulary))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(frequencies)])
    np.save(directory / _STARTS, starts)
    passages, mean, holders = len(corpus), float(lengths.mean()), frequencies
    if whole is not None:
        passages, mean, holders = whole.passages, whole.mean_length, np.empty_like(frequencies)
        holders[numbers] = [whole.holders[term] for term in vocabulary]
    idf = np.log1p((passages - holders + 0.5) / (holders + 0.5))
    norms = _length_norms(lengths, mean, k1, b)
    _scatter(pairs, numbers, distinct, norms, idf, starts[:-1].copy(), directory)
    spool.unlink()
    write_bounds(directory, len(corpus))


def write_bounds(directory: Path, passages: int) -> None:
    """Write what a search leaves passages out by: the largest weights, and the tables."""
    weights, rows = (
        _load(directory / name, kind, in_memory=False)
        for name, kind in ((_WEIGHTS, np.float32), (_ROWS, np.int32))
    )
    starts = np.load(directory / _STARTS)
    most = np.zeros(len(starts) - 1, np.float32)
    if len(most):
        np.maximum.reduceat(weights, starts[:-1], out=most)
    frequent = np.diff(starts) * _SHARE >= passages
    tabled = np.flatnonzero(frequent & (passages > SMALL))
    np.save(directory / _MOST, most)
    np.save(directory / _TABLED, tabled)
    step = _table_step(most, tabled)
    shape = (len(tabled), passages)
    tables = np.lib.format.open_memmap(directory / _TABLES, "w+", np.uint8, shape)
    for at, number in enumerate(tabled.tolist()):
        place = slice(starts[number], starts[number + 1])
        tables[at] = table(rows[place], weights[place], passages, step)
    tables.flush()


def _table_step(most: npt.NDArray[np.float32], tabled: npt.NDArray[np.int64]) -> float:
    """What 1 stands for in the tables: all weights are at most ``LEVELS`` steps."""
    return float(most[tabled].max(initial=0)) / LEVELS


def quantised_length(length: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Lengths as Lucene keeps them in one byte: four significant bits above 40, exact below.

    ``SmallFloat.byte4ToInt(SmallFloat.intToByte4(length))`` of Lucene 7 and later.
    """
    above = np.maximum(length - 24, 0)
    bits = np.frexp(above.astype(np.float64))[1]
    shift = np.maximum(bits - 4, 0)
    return np.where(length < 24, length, 24 + (above >> shift << shift))


class _Numbered(dict[str, int]):
    """Numbers from 0 for terms, in the order in which they are met."""

    def __missing__(self, term: str) -> int:
        number = self[term] = len(self)
        return number


def _analyse(
    corpus: Corpus, analyzer: EnglishAnalyzer, spool: Path, progress: Progress
) -> tuple[dict[str, int], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Spool ``(term, count)`` of every passage; its distinct terms and its length are returned."""
    vocabulary = _Numbered()
    distinct, lengths = array("i"), array("q")
    with spool.open("wb", buffering=1 << 20) as handle:
        for done, passage in enumerate(corpus, start=1):
            counts = Counter(analyzer.words(indexed_text(passage)))
            numbers = map(vocabulary.__getitem__, counts)
            pairs = zip(numbers, counts.values(), strict=True)
            handle.write(np.fromiter(chain.from_iterable(pairs), "<u4").tobytes())
            distinct.append(len(counts))
            lengths.append(counts.total())
            if done % 10_000 == 0:
                progress("indexing words", done, len(corpus))
    return vocabulary, np.frombuffer(distinct, np.int32), np.frombuffer(lengths, np.int64)


def _write_terms(vocabulary: dict[str, int], directory: Path) -> npt.NDArray[np.int64]:
    """Write the terms in their order; returns the place of each by its first number."""
    numbers = np.empty(len(vocabulary), np.int64)
    with ByteStringsWriter(directory, _TERMS) as writer:
        # Code points sort as their UTF-8 does.
        for place, term in enumerate(sorted(vocabulary)):
            numbers[vocabulary[term]] = place
            writer.append(_encode(term))
    return numbers


def _length_norms(
    lengths: npt.NDArray[np.int64], mean: float, k1: float, b: float
) -> npt.NDArray[np.float64]:
    # A corpus without a single word has the mean 0.
    relative = quantised_length(lengths).astype(np.float64) / (mean or 1.0)
    return np.asarray(k1 * (1 - b + b * relative), np.float64)


def _scatter(
    pairs: npt.NDArray[Any],
    numbers: npt.NDArray[np.int64],
    distinct: npt.NDArray[np.int32],
    norms: npt.NDArray[np.float64],
    idf: npt.NDArray[np.float64],
    free: npt.NDArray[np.int64],
    directory: Path,
) -> None:
    """Put every posting in its place; ``free`` holds each term's next free one and is used up."""
    weights, rows = (
        np.lib.format.open_memmap(directory / name, "w+", dtype, (len(pairs),))
        for name, dtype in ((_WEIGHTS, np.float32), (_ROWS, np.int32))
    )
    ends = np.cumsum(distinct, dtype=np.int64)
    for start in range(0, len(pairs), _BLOCK):
        block = pairs[start : start + _BLOCK]
        row = np.searchsorted(ends, np.arange(start, start + len(block)), side="right")
        term, count = numbers[block["term"]], block["count"].astype(np.float64)
        order = np.argsort(term, kind="stable")
        term, row, count = term[order], row[order], count[order]
        present, first, repeats = np.unique(term, return_index=True, return_counts=True)
        place = free[term] + np.arange(len(term)) - np.repeat(first, repeats)
        rows[place] = row
        weights[place] = idf[term] * count / (count + norms[row])
        free[present] += repeats
    weights.flush()
    rows.flush()


def _load(path: Path, dtype: Any, in_memory: bool, dimensions: int = 1) -> npt.NDArray[Any]:
    try:
        mapped = np.load(path, mmap_mode=None if in_memory else "r", allow_pickle=False)
    except ARRAY_ERRORS as error:
        raise IntegrityError(f"{path}: cannot be read ({error}); build it again") from error
    if mapped.ndim != dimensions or mapped.dtype != dtype:
        raise IntegrityError(f"{path}: not the array that was written; build it again")
    # A plain view keeps the mapping and drops np.memmap's cost at every slice.
    plain: npt.NDArray[Any] = mapped.view(np.ndarray)
    return plain


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
