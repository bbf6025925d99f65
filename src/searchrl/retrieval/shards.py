"""Corpora cut into shards, each indexed on its own and yet as a part of the whole.

Shard n of m holds every m-th passage, from the n-th on. A BM25 weight depends on the whole corpus:
how many passages there are, how long they are, how many hold a word. So the build of a shard reads
the corpus to its end and gives its passages the weights that they have in an index of everything;
the scores of one passage are then equal bit for bit, and lists of several shards can be merged.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searchrl.data.corpus_store import Progress
from searchrl.data.passages import Passage
from searchrl.errors import InputError
from searchrl.retrieval.analysis import EnglishAnalyzer
from searchrl.retrieval.postings_build import WordStatistics, indexed_text
from searchrl.retrieval.term_runs import TermRuns

_OWN_TO_A_SHARD = frozenset({"passages", "canaries", "compression", "shard"})
"""What two shards of one corpus may differ in."""
_OWN_TO_A_MACHINE = "model"
"""Where an encoder lies; its weights are compared by their fingerprint."""
_TERMS = 1 << 18
"""Terms whose holders are counted in memory before they go to disk."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a corpus.

    Attributes:
        number: from 1.
        of: how many parts there are.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_shard(text: str) -> Shard:
    """Read ``2/8``.

    Raises:
        InputError: it is something else.
    """
    number, slash, of = text.partition("/")
    if slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return Shard(int(number), int(of))
    raise InputError(f"--shard {text}: name a part of all, as in 2/8")


class Whole:
    """The corpus that a shard is cut from, met as its passages stream by; a context manager.

    Args:
        shard: which part is wanted.
        spool: a directory to make, for counts of words, where the index scores them.
        progress: told of every 10,000th passage.
    """

    def __init__(self, shard: Shard, spool: Path | None, progress: Progress) -> None:
        self._shard = shard
        self._words = None if spool is None else _Words(spool)
        self._progress = progress
        self._passages = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> Whole:
        return self

    def __exit__(self, *_: object) -> None:
        if self._words is not None:
            self._words.close()

    def part(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        """The shard's passages; everything about the others is known at the end.

        Raises:
            InputError: there is none.
        """
        own = 0
        for row, passage in enumerate(passages):
            self._meet(passage)
            if row % self._shard.of == self._shard.number - 1:
                own += 1
                yield passage
        if not own:
            raise InputError(
                f"--shard {self._shard}: the corpus has only {self._passages} passages"
            )

    def statistics(self) -> WordStatistics:
        """For BM25, once all passages went by."""
        if self._words is None:
            raise ValueError("words were not counted")
        return self._words.statistics(self._passages)

    def facts(self) -> dict[str, Any]:
        """The shard and its corpus, for a manifest."""
        corpus = {"passages": self._passages, "sha256": self._digest.hexdigest()}
        return {**asdict(self._shard), "corpus": corpus}

    def _meet(self, passage: Passage) -> None:
        self._passages += 1
        row = json.dumps([passage.id, passage.title, passage.text])
        self._digest.update(row.encode())
        if self._words is not None:
            self._words.meet(passage)
        if self._passages % 10_000 == 0:
            self._progress("reading the corpus", self._passages, None)


class _Words:
    """How many words there are, and how many passages hold each term.

    Args:
        spool: a directory to make, for what memory does not hold.
    """

    def __init__(self, spool: Path) -> None:
        self._analyzer = EnglishAnalyzer()
        self._runs = TermRuns(spool)
        self._holders: Counter[str] = Counter()
        self._words = 0

    def meet(self, passage: Passage) -> None:
        """Count the words of one more passage."""
        words = self._analyzer.words(indexed_text(passage))
        self._words += len(words)
        self._holders.update(set(words))
        if len(self._holders) >= _TERMS:
            self._spill()

    def statistics(self, passages: int) -> WordStatistics:
        """What was counted in so many passages; nothing is counted after that."""
        self._spill()
        self.close()
        return WordStatistics(passages, self._words, self._runs)

    def close(self) -> None:
        """End the files."""
        self._runs.close()

    def _spill(self) -> None:
        terms = sorted(self._holders)
        counts = np.fromiter(map(self._holders.__getitem__, terms), np.int64, len(terms))
        self._runs.append(terms, counts)
        self._holders.clear()


def set_of(about: dict[str, Any]) -> str:
    """Hex digest of what all shards of one corpus share, from the manifest of one of them."""
    shared = {name: value for name, value in about.items() if name not in _OWN_TO_A_SHARD}
    for name in ("query_encoder", "passage_encoder"):
        if name in shared:
            settings = shared[name]
            shared[name] = {k: v for k, v in settings.items() if k != _OWN_TO_A_MACHINE}
    cut = {name: value for name, value in about["shard"].items() if name != "number"}
    return hashlib.sha256(json.dumps([shared, cut], sort_keys=True).encode()).hexdigest()
