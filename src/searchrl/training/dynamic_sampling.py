"""Dynamic sampling (DAPO, arXiv 2503.14476): a step is filled with groups that teach.

Groups with equal rewards are dropped and other questions are asked in their place, for a bounded
number of rounds. Which ones is a function of (run seed, step, round), so a resumed run asks the
same. Where nothing teaches after the last round, the step keeps what the first one made.

Groups may be dropped without others in their place, which costs a step nothing and spares it their
passes.

Differs from the paper: the questions of a later round are drawn from all those the step has not
asked yet, not taken from the steps ahead, so no step depends on how many groups others dropped.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

from searchrl.data.questions import Question
from searchrl.seeding import derive_seed
from searchrl.training.learner import Group, Metrics
from searchrl.training.options import RolloutOptions
from searchrl.training.rollout import Rollout

Roll = Callable[[Sequence[Question]], Awaitable[Rollout]]
"""Runs and scores the episodes of some questions."""


async def collect_teaching(
    roll: Roll,
    questions: Sequence[Question],
    asked: Sequence[Question],
    options: RolloutOptions,
    seed: int,
    step: int,
) -> tuple[Rollout, Metrics]:
    """Roll out a step's questions, then others until as many groups teach.

    Args:
        roll: makes the episodes.
        questions: all there are.
        asked: the questions of the step.
        options: whether groups are dropped, and how often others are asked in their place.
        seed: of the run.
        step: counted from 0.

    Returns:
        All episodes with the groups to learn from, and how they came about.
    """
    first = await roll(asked)
    episodes, made = list(first.episodes), list(first.groups)
    seen, refills = {question.id for question in asked}, 0
    while refills < options.refill_rounds and (missing := len(asked) - len(teaching(made))) > 0:
        fresh = refill(questions, seen, missing, seed, step, refills)
        if not fresh:
            break
        refills += 1
        seen |= {question.id for question in fresh}
        more = await roll(fresh)
        episodes += more.episodes
        made += more.groups
    drops = options.refill_rounds > 0 or options.drop_equal_groups
    kept = (teaching(made) or list(first.groups)) if drops else made
    equal = len(made) - len(teaching(made))
    return Rollout(tuple(episodes), tuple(kept)), {
        "groups/all_equal": equal / len(made) if made else 0.0,
        "groups/refills": float(refills),
    }


def teaching(groups: Sequence[Group]) -> list[Group]:
    """The groups whose rewards differ."""
    return [group for group in groups if len(set(group.rewards)) > 1]


def refill(
    questions: Sequence[Question], seen: set[str], count: int, seed: int, step: int, number: int
) -> list[Question]:
    """Up to ``count`` questions that a step has not asked, the same ones every time."""
    left = [question for question in questions if question.id not in seen]
    draw = random.Random(derive_seed(seed, "refill", step, number))
    return draw.sample(left, min(count, len(left)))
