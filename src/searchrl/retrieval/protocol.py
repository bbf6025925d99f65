"""What every retriever promises: distinct passages, best first, none invented.

A result list holds ``min(k, corpus size)`` hits when that many passages exist, ordered by score
descending and then by id, never padded and never repeated, whatever engine stands behind it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from searchrl.data.corpus import Corpus
from searchrl.data.passages import Passage
from searchrl.errors import InputError


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with the score the retriever gave it for one query."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Answers queries with passages."""

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return one list of hits a query, in the order of the queries.

        Raises:
            InfrastructureError: the service behind this retriever failed after its retries.
        """
        ...


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to one query as rows of a corpus, best first.

    Attributes:
        rows: shape ``(n,)``, distinct.
        scores: shape ``(n,)``.
    """

    rows: npt.NDArray[np.intp]
    scores: npt.NDArray[np.floating]


class IndexRetriever(ABC):
    """A retriever over a corpus in this process.

    Attributes:
        corpus: its passages.
    """

    corpus: Corpus

    @abstractmethod
    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """The ``min(k, len(corpus))`` best rows of every query; ``k`` is positive."""

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See ``Retriever.search``; computed on the spot.

        Raises:
            InputError: ``k`` is not positive.
        """
        return self.find(queries, k)

    def find(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """What ``search`` returns.

        Raises:
            InputError: ``k`` is not positive.
        """
        _check(k)
        return [self._hits(ranking) for ranking in self.rank(queries, k)]

    def top(self, query: str, k: int) -> list[Hit]:
        """The answer to one query; see ``search``."""
        _check(k)
        (ranking,) = self.rank([query], k)
        return self._hits(ranking)

    def _hits(self, ranking: Ranking) -> list[Hit]:
        pairs = zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        return [Hit(self.corpus[row], score) for row, score in pairs]


def _check(k: int) -> None:
    if k <= 0:
        raise InputError(f"k is {k}; a search needs at least 1")
