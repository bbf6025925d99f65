"""Several retrievers over one corpus, fused by reciprocal ranks.

``score = sum of 1 / (constant + rank)`` over the parts that found the passage, ranks from 1
(Cormack, Clarke and Buettcher, SIGIR 2009, where the constant is 60). Only ranks count, so parts
need no common scale of scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from searchrl.retrieval.protocol import IndexRetriever, Ranking
from searchrl.retrieval.ranking import Ranks, in_order


class HybridRetriever(IndexRetriever):
    """Asks every part and fuses the answers.

    Args:
        parts: retrievers over the same corpus.
        depth: passages that each part puts in; never fewer than are asked for.
        constant: how little the first places stand out.
    """

    def __init__(self, parts: Sequence[IndexRetriever], depth: int, constant: float) -> None:
        self.corpus = parts[0].corpus
        self.parts = tuple(parts)
        self._depth = depth
        self._constant = constant

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """See ``IndexRetriever.rank``."""
        answers = [part.rank(queries, max(k, self._depth)) for part in self.parts]
        return [
            fused(rankings, self._constant, self.corpus.ranks, k)
            for rankings in zip(*answers, strict=True)
        ]


def fused(rankings: Sequence[Ranking], constant: float, ranks: Ranks, k: int) -> Ranking:
    """The ``k`` best rows of several rankings by the sum of their reciprocal ranks."""
    rows, places = np.unique(
        np.concatenate([ranking.rows for ranking in rankings]), return_inverse=True
    )
    shares = np.concatenate([1 / (constant + 1 + np.arange(len(each.rows))) for each in rankings])
    scores = np.zeros(len(rows))
    np.add.at(scores, places, shares)
    order = in_order(np.arange(len(rows)), scores, ranks[rows])[:k]
    return Ranking(rows[order], scores[order])
