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
from typing import Any

from searchrl.data.corpus_store import Progress
from searchrl.data.passages import Passage
from searchrl.errors import InputError
from searchrl.retrieval.analysis import EnglishAnalyzer
from searchrl.retrieval.postings import WordStatistics, indexed_text

_OWN_TO_A_SHARD = frozenset({"passages", "canaries", "compression", "shard"})
"""What two shards of one corpus may differ in."""
_OWN_TO_A_MACHINE = "model"
"""Where an encoder lies; its weights are compared by their fingerprint."""


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
    """The corpus that a shard is cut from, met as its passages stream by.

    Args:
        shard: which part is wanted.
        words: count words too, for an index that scores them.
        progress: told of every 10,000th passage.
    """

    def __init__(self, shard: Shard, words: bool, progress: Progress) -> None:
        self._shard = shard
        self._analyzer = EnglishAnalyzer() if words else None
        self._progress = progress
        self._passages = self._words = 0
        self._holders: Counter[str] = Counter()
        self._digest = hashlib.sha256()

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

    @property
    def statistics(self) -> WordStatistics:
        """For BM25, once all passages went by."""
        return WordStatistics(self._passages, self._words, self._holders)

    def facts(self) -> dict[str, Any]:
        """The shard and its corpus, for a manifest."""
        corpus = {"passages": self._passages, "sha256": self._digest.hexdigest()}
        return {**asdict(self._shard), "corpus": corpus}

    def _meet(self, passage: Passage) -> None:
        self._passages += 1
        row = json.dumps([passage.id, passage.title, passage.text])
        self._digest.update(row.encode())
        if self._analyzer is not None:
            words = self._analyzer.words(indexed_text(passage))
            self._words += len(words)
            self._holders.update(set(words))
        if self._passages % 10_000 == 0:
            self._progress("reading the corpus", self._passages, None)


def set_of(about: dict[str, Any]) -> str:
    """Hex digest of what all shards of one corpus share, from the manifest of one of them."""
    shared = {name: value for name, value in about.items() if name not in _OWN_TO_A_SHARD}
    for name in ("query_encoder", "passage_encoder"):
        if name in shared:
            settings = shared[name]
            shared[name] = {k: v for k, v in settings.items() if k != _OWN_TO_A_MACHINE}
    cut = {name: value for name, value in about["shard"].items() if name != "number"}
    return hashlib.sha256(json.dumps([shared, cut], sort_keys=True).encode()).hexdigest()
