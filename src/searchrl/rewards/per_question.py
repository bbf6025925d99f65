"""Rewards that the questions choose: each names the one that its episodes are scored by.

A question names a metric of its answer, or the function that the recipe names; data can choose
among rewards and never bring code of their own. One that names none is scored by exact match.

Search-R1 has one reward a run; its Qwen3-0.6B deployment guide promises one a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from searchrl.agents.episode import Episode, Reward
from searchrl.data.questions import Question, QuestionReward
from searchrl.errors import InputError
from searchrl.rewards.protocol import RewardFunction

DEFAULT: QuestionReward = "exact_match"


class PerQuestionReward:
    """Scores each episode by the reward that its question names.

    Args:
        rewards: every reward that a question may name.
    """

    def __init__(self, rewards: Mapping[QuestionReward, RewardFunction]) -> None:
        self._rewards = rewards

    async def score(self, episode: Episode) -> Reward:
        """Score a finished episode; the value is ``None`` when a service failed."""
        return await self._rewards[episode.question.reward or DEFAULT].score(episode)


def check_rewards(questions: Iterable[Question], has_function: bool) -> None:
    """See that every question names a reward that there is.

    Raises:
        InputError: one wants a function, and the recipe has none.
    """
    for question in questions:
        if question.reward == "function" and not has_function:
            raise InputError(
                f"question {question.id!r} wants a reward function of your own: name it in the "
                'recipe as reward.function = "module:function", or change the question\'s reward'
            )
