"""DeepRetrieval's rewards: how well the rewritten query retrieves (arXiv 2503.00223, section 3).

The query of the episode is searched again to the depth of the paper, and its ranking is turned into
a number by one of the published tables:

- ``evidence`` (NQ, TriviaQA, SQuAD): by the rank of the first passage that holds a gold answer.
- ``recall`` (literature search): by the share of gold passages that are retrieved.
- ``ndcg`` (HotpotQA, FEVER): NDCG of the gold passages.

The first two add a format term, +1 for one thinking block followed by one answer block and -4
otherwise; an output without a query counts as the published -4 for an error. ``ndcg`` gives
0.1 + NDCG where that is above 0, else 0, and -2 for a malformed output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from searchrl.agents.episode import ActionKind, Episode, Reward
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval.metrics import ndcg, recall
from searchrl.retrieval.protocol import Hit, Retriever
from searchrl.rewards.text import has_answer

Table = Literal["evidence", "recall", "ndcg"]

_RANKS = ((5, 5.0), (20, 4.0), (50, 2.0), (100, 1.0), (1000, 0.5), (3000, 0.1))
"""Worst rank and what it is worth."""
_RECALLS = ((0.7, 5.0), (0.5, 4.0), (0.4, 3.0), (0.3, 1.0), (0.1, 0.5), (0.05, 0.1))
"""Least recall and what it is worth."""
_MISS, _ERROR = -3.5, -4.0
_WELL_FORMED, _MALFORMED = 1.0, -4.0
_NDCG_WELL_FORMED, _NDCG_MALFORMED = 0.1, -2.0


class DeepRetrievalReward:
    """Scores the query of a DeepRetrieval episode.

    Args:
        retriever: where the query is searched again.
        table: which published table.
        depth: passages that are ranked; 3,000 in the paper.
    """

    def __init__(self, retriever: Retriever, table: Table = "evidence", depth: int = 3000) -> None:
        self._retriever = retriever
        self._table = table
        self._depth = depth

    async def score(self, episode: Episode) -> Reward:
        """Score a finished episode; the value is ``None`` when the retriever failed.

        Raises:
            InputError: the table needs gold passages and the question names none.
        """
        if episode.error is not None:
            return Reward(None)
        turn = episode.turns[-1] if episode.turns else None
        well_formed = turn is not None and bool(turn.well_formed)
        quality: float | None = None
        if turn is not None and turn.action.kind is ActionKind.SEARCH:
            try:
                [found] = await self._retriever.search([turn.action.query], self._depth)
            except InfrastructureError as error:
                episode.fail(error)
                return Reward(None)
            quality = self._quality(episode.question, found)
        value = self._value(quality, well_formed)
        return Reward(value, {"well_formed": float(well_formed), "retrieval": quality or 0.0})

    def _quality(self, question: Question, found: Sequence[Hit]) -> float:
        """What the table is read by: 1 / rank of the first evidence, recall, or NDCG."""
        if self._table == "evidence":
            contents = (hit.passage.contents for hit in found)
            hits = (n for n, text in enumerate(contents, 1) if has_answer(text, question.answers))
            first = next(hits, None)
            return 1 / first if first else 0.0
        if not question.gold_ids:
            raise InputError(
                f'question {question.id!r}: field "supporting_ids" is empty; the reward table '
                f'"{self._table}" needs the ids of the gold passages'
            )
        ranking = [hit.passage.id for hit in found]
        metric = recall if self._table == "recall" else ndcg
        return metric(ranking, dict.fromkeys(question.gold_ids, 1), self._depth)

    def _value(self, quality: float | None, well_formed: bool) -> float:
        if self._table == "ndcg":
            if not well_formed or quality is None:
                return _NDCG_MALFORMED
            return _NDCG_WELL_FORMED + quality if quality > 0 else 0.0
        form = _WELL_FORMED if well_formed else _MALFORMED
        if quality is None:
            return form + _ERROR
        return form + (
            _rank_worth(quality) if self._table == "evidence" else _recall_worth(quality)
        )


def _rank_worth(reciprocal: float) -> float:
    if not reciprocal:
        return _MISS
    rank = round(1 / reciprocal)
    return next((worth for worst, worth in _RANKS if rank <= worst), _MISS)


def _recall_worth(share: float) -> float:
    return next((worth for least, worth in _RECALLS if share >= least), _MISS)
