"""One step's episodes: which questions, with which seeds, and what they were worth.

The questions of a step are a function of (run seed, step), every episode's seed of (run seed, step,
question id, sample index). Episodes that met a failed service leave their group; a group with
fewer members than its baseline needs leaves the step.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from searchrl.agents.agent import Agent, Draw
from searchrl.agents.episode import Episode
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.rewards.protocol import RewardFunction
from searchrl.seeding import derive_seed
from searchrl.training.learner import Group
from searchrl.training.options import RolloutOptions


@dataclass(frozen=True, slots=True)
class Rollout:
    """All episodes of a step, and the groups that can be learned from."""

    episodes: tuple[Episode, ...]
    groups: tuple[Group, ...]


def questions_of_step(
    questions: Sequence[Question], step: int, count: int, seed: int
) -> list[Question]:
    """The questions of step ``step``, counted from 0: consecutive ones of a shuffled epoch.

    No question comes twice in an epoch. Where ``count`` does not divide their number, the rest of
    an epoch's order is left out, another one each epoch.

    Raises:
        InputError: fewer questions than a step needs.
    """
    if len(questions) < count:
        raise InputError(
            f"a step needs {count} questions and {len(questions)} are left to train on; "
            "lower rollout.questions_per_step or add questions"
        )
    steps_per_epoch = len(questions) // count
    epoch, place = divmod(step, steps_per_epoch)
    order = list(range(len(questions)))
    random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return [questions[index] for index in order[place * count : (place + 1) * count]]


Attempt = Callable[[Sequence[Question]], Coroutine[Any, Any, list[Episode]]]
"""Makes and scores the episodes of some questions, as many of each, in their order."""
Sharing = Callable[[Attempt, Sequence[Question]], Awaitable[list[Episode]]]
"""Who attempts which questions; every process gets the episodes of all."""


async def attempt_all(attempt: Attempt, questions: Sequence[Question]) -> list[Episode]:
    """All questions in this process."""
    return await attempt(questions)


async def collect(
    agent: Agent,
    reward: RewardFunction,
    questions: Sequence[Question],
    options: RolloutOptions,
    seed: int,
    step: int,
    smallest_group: int,
    sharing: Sharing = attempt_all,
) -> Rollout:
    """Run and score a step's episodes.

    Raises:
        InfrastructureError: more episodes failed than ``options.max_failed`` allows.
    """

    async def attempt(some: Sequence[Question]) -> list[Episode]:
        tasks = [
            agent.run(question, Draw(options.temperature, draw))
            for question in some
            for draw in (
                derive_seed(seed, step, question.id, sample) for sample in range(options.group_size)
            )
        ]
        episodes = await asyncio.gather(*tasks)
        rewards = await asyncio.gather(*(reward.score(episode) for episode in episodes))
        for episode, value in zip(episodes, rewards, strict=True):
            episode.reward = value
        return episodes

    episodes = await sharing(attempt, questions)
    _check_failures(episodes, options.max_failed)
    size = options.group_size
    members = [episodes[start : start + size] for start in range(0, len(episodes), size)]
    valid = [tuple(e for e in group if _learnable(e)) for group in members]
    groups = tuple(Group(group) for group in valid if len(group) >= smallest_group)
    return Rollout(tuple(episodes), groups)


def _failed(episode: Episode) -> bool:
    return episode.error is not None or episode.reward is None or episode.reward.value is None


def _learnable(episode: Episode) -> bool:
    return not _failed(episode) and any(episode.trainable_mask)


def _check_failures(episodes: Sequence[Episode], allowed: float) -> None:
    failed = [episode for episode in episodes if _failed(episode)]
    if len(failed) > allowed * len(episodes):
        raise InfrastructureError(
            f"{len(failed)} of {len(episodes)} episodes met a failed service, "
            f"first: {failed[0].error or 'no reward'}"
        )
