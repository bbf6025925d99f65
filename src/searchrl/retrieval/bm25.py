"""BM25 in this process: the first-stage retriever of every method.

Analysis and weights are Lucene's, so its published numbers are met. One analyzer object turns
passages and queries into words, so the two can never be cut differently. Every query is scored on
its own: a batch changes nothing. Defaults are Anserini's (k1 = 0.9, b = 0.4), as in s3 and
Search-R1.

Differs from Lucene: passages that match no word fill the list up with score 0, and equal scores are
ordered by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from searchrl.data.corpus import Corpus, MemoryCorpus
from searchrl.data.corpus_store import Progress, silent
from searchrl.data.passages import Passage
from searchrl.errors import InputError
from searchrl.retrieval.analysis import EnglishAnalyzer
from searchrl.retrieval.maxscore import Accumulator, added_up
from searchrl.retrieval.postings import SMALL, Postings
from searchrl.retrieval.postings_build import WordStatistics, write_postings
from searchrl.retrieval.protocol import IndexRetriever, Ranking
from searchrl.retrieval.ranking import best_rows, in_order


class Bm25Retriever(IndexRetriever):
    """Answers queries over a corpus; see ``write_postings`` for the scores."""

    def __init__(self, passages: Iterable[Passage], k1: float = 0.9, b: float = 0.4) -> None:
        """Index ``passages`` in memory.

        Raises:
            InputError: no passage, a repeated id, k1 below 0, or b outside 0 to 1.
        """
        corpus = MemoryCorpus(passages)
        with TemporaryDirectory() as name:
            write_bm25(corpus, Path(name), k1, b)
            self._set(corpus, Postings(Path(name), in_memory=True))

    @classmethod
    def open(cls, corpus: Corpus, directory: Path) -> Bm25Retriever:
        """Map what ``write_bm25`` wrote for ``corpus``.

        Raises:
            IntegrityError: a file is missing or is not what was written.
        """
        retriever = cls.__new__(cls)
        retriever._set(corpus, Postings(directory))
        return retriever

    def _set(self, corpus: Corpus, postings: Postings) -> None:
        self.corpus = corpus
        self._postings = postings
        self._accumulator = Accumulator(len(corpus))
        self._analyzer = EnglishAnalyzer()

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """See ``IndexRetriever.rank``; passages that match no word score 0."""
        return [self._rank(query, k) for query in queries]

    def _rank(self, query: str, k: int) -> Ranking:
        words = self._analyzer.words(query)
        terms = self._postings.terms(words)
        if len(self.corpus) > SMALL and terms:
            rows = self._accumulator.candidates(terms, k)
            if rows is not None:
                found = added_up(terms, rows)
                best = in_order(np.arange(len(rows)), found, self.corpus.ranks[rows])[:k]
                return Ranking(rows[best].astype(np.intp), found[best])
        scores = self._postings.scores(words, len(self.corpus))
        best = best_rows(scores, self.corpus.ranks, k)
        return Ranking(best, scores[best])


def write_bm25(
    corpus: Corpus,
    directory: Path,
    k1: float,
    b: float,
    progress: Progress = silent,
    whole: WordStatistics | None = None,
) -> None:
    """Index ``corpus`` into the files of ``directory``.

    Args:
        corpus: the passages.
        directory: where to.
        k1: how slowly repeats of a word saturate.
        b: weight of the passage's length.
        progress: told of passages done.
        whole: what weights take from the corpus, where it is a shard of another.

    Raises:
        InputError: k1 below 0, or b outside 0 to 1.
    """
    if not 0 <= k1 < float("inf"):
        raise InputError(f"k1 is {k1}; BM25 needs a finite number of at least 0")
    if not 0 <= b <= 1:
        raise InputError(f"b is {b}; BM25 needs a number from 0 to 1")
    write_postings(corpus, EnglishAnalyzer(), k1, b, directory, progress, whole)
