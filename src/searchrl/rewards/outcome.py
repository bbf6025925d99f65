"""Outcome rewards: how far the final answer agrees with the gold answers, and nothing else.

Search-R1 (arXiv 2503.09516, section 3.4) learns from exact match alone. The answer is the one that
the model's own output was parsed to, or the frozen generator's, for a method that leaves answering
to it; an episode without an answer earns 0 under every metric.

Differs from the original, which looks for the last answer tag in prompt and response together: it
finds the worked example of its own instructions where the model gave no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from searchrl.agents.episode import Episode, Reward
from searchrl.agents.generator import AnswerGenerator, final_answer
from searchrl.errors import InfrastructureError
from searchrl.rewards.text import exact_match, f1, substring_match

OutcomeMetric = Literal["exact_match", "f1", "sub_em"]

_METRICS: Mapping[OutcomeMetric, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "sub_em": substring_match,
}


def agreement(metric: OutcomeMetric, answer: str | None, golds: Sequence[str]) -> float:
    """How far an answer agrees with the closest gold answer, in [0, 1]; ``None`` never does."""
    return 0.0 if answer is None else float(_METRICS[metric](answer, golds))


class OutcomeReward:
    """Rewards the final answer by one metric.

    Args:
        metric: ``exact_match``, ``f1`` or ``sub_em``.
        generator: answers for methods that do not answer themselves.
    """

    def __init__(self, metric: OutcomeMetric, generator: AnswerGenerator | None = None) -> None:
        self._metric: OutcomeMetric = metric
        self._generator = generator

    async def score(self, episode: Episode) -> Reward:
        """Score a finished episode; the value is ``None`` when a service failed."""
        if episode.error is not None:
            return Reward(None)
        try:
            answer = await final_answer(episode, self._generator)
        except InfrastructureError as error:
            episode.fail(error)
            return Reward(None)
        golds = episode.question.answers
        parts = {
            "answered": float(answer is not None),
            "em": agreement("exact_match", answer, golds),
            "f1": agreement("f1", answer, golds),
        }
        return Reward(agreement(self._metric, answer, golds), parts)
