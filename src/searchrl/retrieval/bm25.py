"""BM25 in this process: the first-stage retriever of every method, over the library bm25s.

One analyzer object turns passages and queries into words, so the two can never be cut differently.
Passages are numbered in the order of their ids, which makes "score, then id" the order of the
numbers, and equal scores at the k-th place are settled exactly. Every query is scored on its own:
a batch changes nothing. Defaults are Anserini's (k1 = 0.9, b = 0.4), as in s3 and Search-R1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import numpy.typing as npt
import Stemmer

from searchrl.data.jsonl import write_jsonl
from searchrl.data.passages import Passage, read_corpus
from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval.protocol import Hit

_LUCENE_STOP_WORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there
these they this to was will with
"""
STOP_WORDS = frozenset(_LUCENE_STOP_WORDS.split())
_WORD = re.compile(r"\w+(?:['’]\w+)*")  # noqa: RUF001 - the typographic apostrophe is meant
_POSSESSIVE = re.compile(r"['’]s$")  # noqa: RUF001
_PASSAGES = "passages.jsonl"


class EnglishAnalyzer:
    """Words, lower-cased, without possessive s and Lucene's 33 stop words, Snowball-stemmed.

    Attributes:
        name: changes whenever the words that come out may change; an index remembers it.
    """

    name = "english-snowball-1"

    def __init__(self) -> None:
        self._stem: Any = Stemmer.Stemmer("english")

    def words(self, text: str) -> list[str]:
        """The index terms of a text, in order, repeats kept."""
        found = (_POSSESSIVE.sub("", word) for word in _WORD.findall(text.lower()))
        stems: list[str] = self._stem.stemWords([word for word in found if word not in STOP_WORDS])
        return stems


class Bm25Retriever:
    """Answers queries with Lucene's BM25: ``idf * tf / (tf + k1 * (1 - b + b * length / mean))``.

    ``idf = ln(1 + (N - df + 0.5) / (df + 0.5))``, summed over the words of the query; a word that
    stands twice in the query counts twice. Title and text are indexed as one field.
    """

    def __init__(self, passages: Iterable[Passage], k1: float = 0.9, b: float = 0.4) -> None:
        """Index ``passages``.

        Raises:
            InputError: no passage, a repeated id, k1 below 0, or b outside 0 to 1.
        """
        _check_settings(k1, b)
        self._passages = _numbered(passages)
        self._analyzer = EnglishAnalyzer()
        self._engine = _index(self._passages, self._analyzer, k1, b)

    @classmethod
    def load(cls, directory: Path) -> Bm25Retriever:
        """Open what ``save`` wrote; the arrays are memory-mapped.

        Raises:
            IntegrityError: a file is missing or is not what ``save`` writes.
        """
        retriever = cls.__new__(cls)
        try:
            retriever._engine = bm25s.BM25.load(directory, mmap=True, allow_pickle=False)
            retriever._passages = _numbered(read_corpus(directory / _PASSAGES))
        except (InputError, OSError, ValueError, TypeError, KeyError, EOFError) as error:
            raise IntegrityError(
                f"{directory}: cannot be loaded ({error}); build it again"
            ) from error
        scores = retriever._engine.scores
        # A plain view keeps the mapping and drops np.memmap's cost at every slice.
        for name in ("data", "indices", "indptr"):
            scores[name] = scores[name].view(np.ndarray)
        if scores["num_docs"] != len(retriever):
            raise IntegrityError(
                f"{directory}: arrays and passages differ in number; build it again"
            )
        retriever._analyzer = EnglishAnalyzer()
        return retriever

    def save(self, directory: Path) -> None:
        """Write arrays (``.npy``, no pickle), vocabulary, settings, and passages."""
        self._engine.save(directory, allow_pickle=False, show_progress=False)
        rows = ({"id": p.id, "title": p.title, "text": p.text} for p in self._passages)
        write_jsonl(directory / _PASSAGES, rows)

    def __len__(self) -> int:
        return len(self._passages)

    @property
    def passages(self) -> Sequence[Passage]:
        """All passages, in the order of their ids."""
        return self._passages

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the scores: analyzer, k1, b, and the library with its version."""
        return {
            "analyzer": self._analyzer.name,
            "k1": self._engine.k1,
            "b": self._engine.b,
            "library": f"bm25s {bm25s.__version__}",
        }

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``; computed on the spot, well under a millisecond a query.

        Raises:
            InputError: ``k`` is not positive.
        """
        return [self.top(query, k) for query in queries]

    def top(self, query: str, k: int) -> list[Hit]:
        """The ``min(k, len(self))`` best passages; those that match no word score 0.

        Raises:
            InputError: ``k`` is not positive.
        """
        if k <= 0:
            raise InputError(f"k is {k}; a search needs at least 1")
        scores = self._scores(query)
        return [Hit(self._passages[row], float(scores[row])) for row in _best(scores, k)]

    def _scores(self, query: str) -> npt.NDArray[np.float32]:
        """Scores of all passages, shape ``(len(self),)``."""
        word_ids = self._engine.get_tokens_ids(self._analyzer.words(query))
        scores: npt.NDArray[np.float32] = self._engine.get_scores_from_ids(word_ids)
        return scores


def _check_settings(k1: float, b: float) -> None:
    if not 0 <= k1 < float("inf"):
        raise InputError(f"k1 is {k1}; BM25 needs a finite number of at least 0")
    if not 0 <= b <= 1:
        raise InputError(f"b is {b}; BM25 needs a number from 0 to 1")


def _numbered(passages: Iterable[Passage]) -> list[Passage]:
    ordered = sorted(passages, key=lambda passage: passage.id)
    if not ordered:
        raise InputError("the corpus is empty; an index needs at least one passage")
    for left, right in pairwise(ordered):
        if left.id == right.id:
            raise InputError(f"passage id {left.id!r} appears twice; ids must differ")
    return ordered


def _index(passages: Sequence[Passage], analyzer: EnglishAnalyzer, k1: float, b: float) -> Any:
    # The empty word stands in no passage: it keeps the vocabulary from being empty, which bm25s
    # does not survive. Words are numbered as they come, so equal corpora give equal bytes.
    vocabulary = {"": 0}
    rows = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in analyzer.words(_field(passage))]
        for passage in passages
    ]
    engine = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
    with np.errstate(invalid="ignore"):  # a corpus of stop words alone has mean length 0
        engine.index((rows, vocabulary), create_empty_token=False, show_progress=False)
    return engine


def _field(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}"


def _best(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    """Rows of the ``k`` highest scores; equal scores by row, at the k-th place too."""
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > kth)
    level = np.flatnonzero(scores == kth)[: k - len(above)]
    return np.concatenate([above[np.argsort(-scores[above], kind="stable")], level])
