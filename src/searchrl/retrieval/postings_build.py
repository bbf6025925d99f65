"""The inverted index of BM25 under construction, in memory that does not grow with the corpus.

The corpus is analysed once. Postings pile up until there are two million, or half a million terms;
then they are sorted by term and appended to a spool on disk as a run (Heinz and Zobel, 2003). Runs
are merged a part of the vocabulary at a time: a part's terms get their numbers and weights, and its
postings go to their places, which are next to each other. What grows is on disk, or mapped.

Differs from the paper: runs are merged by cutting the vocabulary, not by a heap, so that all work
on postings is numpy's.
"""

from __future__ import annotations

import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchrl.data.array_file import ArrayWriter, mapped_array
from searchrl.data.byte_strings import ByteStringsWriter
from searchrl.data.corpus import Corpus
from searchrl.data.corpus_store import Progress
from searchrl.data.passages import Passage
from searchrl.retrieval.analysis import EnglishAnalyzer
from searchrl.retrieval.postings import KEYS, MOST, ROWS, STARTS, TERMS, WEIGHTS, load, term_keys
from searchrl.retrieval.postings_tables import write_tables
from searchrl.retrieval.term_runs import Counts, RunPart, TermRuns

_SPOOL = "spool.tmp"
_COUNTS, _LENGTHS, _NORMS = "counts.npy", "lengths.npy", "norms.npy"
_RUN = 1 << 21
"""Postings that are sorted at once."""
_TERMS = 1 << 19
"""Terms, which take far more memory each, that they may have."""
_BLOCK = 1 << 20
"""Numbers of a mapped array that are computed with at once."""


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """What the weights of one passage take from all of them.

    Attributes:
        passages: how many there are.
        words: in all of them together.
        holders: how many passages hold each term, of some in each run.
    """

    passages: int
    words: int
    holders: TermRuns

    @property
    def mean_length(self) -> float:
        """Words of a passage, on average."""
        return self.words / self.passages


def indexed_text(passage: Passage) -> str:
    """Title and text as the one field that is indexed."""
    return f"{passage.title}\n{passage.text}"


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
    spool.mkdir()
    own = _analyse(corpus, analyzer, spool, progress)
    _write_norms(spool, (whole or own).mean_length, k1, b)
    _merge(own, whole, spool, directory)
    shutil.rmtree(spool)
    write_tables(directory, len(corpus))


class _Numbered(dict[str, int]):
    """Numbers from 0 for terms, in the order in which they are met."""

    def __missing__(self, term: str) -> int:
        number = self[term] = len(self)
        return number


class _Pile:
    """Postings of neighbouring passages, not yet sorted.

    Args:
        first: the row of the first passage.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._vocabulary = _Numbered()
        self._terms, self._counts = array("I"), array("I")
        self._distinct, self._lengths = array("q"), array("q")

    @property
    def full(self) -> bool:
        """Whether it is time to sort them."""
        return len(self._terms) >= _RUN or len(self._vocabulary) >= _TERMS

    def add(self, counts: Counter[str]) -> None:
        """Add the next passage, how often it holds each of its terms."""
        self._terms.extend(map(self._vocabulary.__getitem__, counts))
        self._counts.extend(counts.values())
        self._distinct.append(len(counts))
        self._lengths.append(counts.total())

    def lengths(self) -> Counts:
        """Words of each passage."""
        return np.frombuffer(self._lengths, np.int64)

    def sorted(
        self,
    ) -> tuple[Sequence[str], Counts, npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        """Terms in their order, the number of holders of each; then their rows and counts."""
        terms = sorted(self._vocabulary)
        numbers = np.fromiter(map(self._vocabulary.__getitem__, terms), np.int64, len(terms))
        places = np.empty_like(numbers)
        places[numbers] = np.arange(len(terms))
        postings = places[np.frombuffer(self._terms, np.uintc)]
        holders = np.bincount(postings, minlength=len(terms))
        # As one number each, numpy sorts them many times as fast as with a stable sort.
        keys = postings << 32 | np.arange(len(postings))
        keys.sort()
        order = keys & 0xFFFFFFFF
        distinct = np.frombuffer(self._distinct, np.int64)
        rows = np.repeat(np.arange(self._first, self._first + len(distinct)), distinct)
        return terms, holders, rows[order], np.frombuffer(self._counts, np.uintc)[order]


def _analyse(
    corpus: Corpus, analyzer: EnglishAnalyzer, spool: Path, progress: Progress
) -> WordStatistics:
    """Spool the postings of a corpus in runs, and the lengths of its passages."""
    words = 0
    with (
        TermRuns(spool / TERMS) as runs,
        ArrayWriter(spool / ROWS, np.int32) as rows,
        ArrayWriter(spool / _COUNTS, np.uint32) as counts,
        ArrayWriter(spool / _LENGTHS, np.int64) as lengths,
    ):
        pile = _Pile(0)
        for done, passage in enumerate(corpus, start=1):
            pile.add(Counter(analyzer.words(indexed_text(passage))))
            if pile.full or done == len(corpus):
                terms, holders, row, count = pile.sorted()
                runs.append(terms, holders)
                rows.append(row)
                counts.append(count)
                lengths.append(pile.lengths())
                words += int(pile.lengths().sum())
                pile = _Pile(done)
            if done % 10_000 == 0:
                progress("indexing words", done, len(corpus))
    return WordStatistics(len(corpus), words, runs)


def quantised_length(length: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Lengths as Lucene keeps them in one byte: four significant bits above 40, exact below.

    ``SmallFloat.byte4ToInt(SmallFloat.intToByte4(length))`` of Lucene 7 and later.
    """
    above = np.maximum(length - 24, 0)
    bits = np.frexp(above.astype(np.float64))[1]
    shift = np.maximum(bits - 4, 0)
    return np.where(length < 24, length, 24 + (above >> shift << shift))


def _write_norms(spool: Path, mean: float, k1: float, b: float) -> None:
    """Write what the lengths of passages add to the denominator of their weights."""
    lengths = load(spool / _LENGTHS, np.int64)
    with ArrayWriter(spool / _NORMS, np.float64) as norms:
        for start in range(0, len(lengths), _BLOCK):
            # A corpus without a single word has the mean 0.
            relative = quantised_length(lengths[start : start + _BLOCK]) / (mean or 1.0)
            norms.append(k1 * (1 - b + b * relative))


def _merge(own: WordStatistics, whole: WordStatistics | None, spool: Path, directory: Path) -> None:
    """Write the terms and their postings, one part of the vocabulary after the other."""
    at = own.holders.cuts()
    wholes: Iterable[Sequence[RunPart] | None] = repeat(None)
    if whole is not None:
        # Its vocabulary is far larger than that of a small shard.
        at = sorted({*at, *whole.holders.cuts()})
        wholes = whole.holders.parts(at)
    passages = (whole or own).passages
    with _Merger(spool, directory, passages) as merger:
        for part, of_whole in zip(own.holders.parts(at), wholes, strict=False):
            merger.add(part, of_whole)


class _Merger:
    """Puts postings from the spool in their places; a context manager.

    Args:
        spool: what ``_analyse`` and ``_write_norms`` wrote.
        directory: of the index.
        passages: how many the weights are computed for.
    """

    def __init__(self, spool: Path, directory: Path, passages: int) -> None:
        self._passages = passages
        self._spooled_rows = load(spool / ROWS, np.int32)
        self._spooled_counts = load(spool / _COUNTS, np.uint32)
        self._norms = load(spool / _NORMS, np.float64)
        total = (len(self._spooled_rows),)
        self._rows = mapped_array(directory / ROWS, np.int32, total)
        self._weights = mapped_array(directory / WEIGHTS, np.float32, total)
        self._files = ExitStack()
        self._terms = self._files.enter_context(ByteStringsWriter(directory, TERMS))
        self._keys, self._starts, self._most = (
            self._files.enter_context(ArrayWriter(directory / name, dtype))
            for name, dtype in ((KEYS, np.uint64), (STARTS, np.int64), (MOST, np.float32))
        )
        self._starts.append(np.zeros(1))
        self._done = 0

    def __enter__(self) -> _Merger:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.flush()
        self._weights.flush()
        self._files.close()

    def add(self, runs: Sequence[RunPart], whole: Sequence[RunPart] | None) -> None:
        """Write the next part of the vocabulary.

        Args:
            runs: what belongs to it.
            whole: how many passages of the whole hold its terms, where that is another corpus.
        """
        terms = sorted(set().union(*(run.terms for run in runs)))
        if not terms:
            return
        numbers = {term: number for number, term in enumerate(terms)}
        counted = _counted(numbers, runs)
        holders = counted if whole is None else _counted(numbers, whole)
        idf = np.log1p((self._passages - holders + 0.5) / (holders + 0.5))
        ends = self._done + np.cumsum(counted)
        starts = ends - counted
        free = starts.copy()
        for run in runs:
            self._place(run, _numbers(numbers, run), idf, free)
        self._write(terms, ends)
        weights = self._weights[self._done : ends[-1]]
        self._most.append(np.maximum.reduceat(weights, starts - self._done))
        self._done = int(ends[-1])

    def _place(
        self,
        run: RunPart,
        numbers: npt.NDArray[np.intp],
        idf: npt.NDArray[np.float64],
        free: npt.NDArray[np.int64],
    ) -> None:
        """Put postings in their places; ``free`` holds each term's next one and moves on."""
        spooled = slice(run.starts[0], run.starts[-1] + run.counts[-1])
        row = self._spooled_rows[spooled]
        count = self._spooled_counts[spooled].astype(np.float64)
        shift = np.repeat(free[numbers] - run.starts, run.counts)
        place = shift + np.arange(spooled.start, spooled.stop)
        self._rows[place] = row
        self._weights[place] = (
            np.repeat(idf[numbers], run.counts) * count / (count + self._norms[row])
        )
        free[numbers] += run.counts

    def _write(self, terms: Sequence[bytes], ends: Counts) -> None:
        for term in terms:
            self._terms.append(term)
        self._keys.append(term_keys(terms))
        self._starts.append(ends)


def _numbers(numbers: Mapping[bytes, int], run: RunPart) -> npt.NDArray[np.intp]:
    return np.fromiter(map(numbers.__getitem__, run.terms), np.intp, len(run.terms))


def _counted(numbers: Mapping[bytes, int], runs: Sequence[RunPart]) -> Counts:
    """The sum of the counts of each numbered term; runs may hold others."""
    sums = np.zeros(len(numbers), np.int64)
    for run in runs:
        found = np.fromiter((numbers.get(term, -1) for term in run.terms), np.intp, len(run.terms))
        known = found >= 0
        sums[found[known]] += run.counts[known]
    return sums
