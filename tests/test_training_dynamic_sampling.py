"""Dynamic sampling: which questions come after groups that taught nothing, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from searchrl.data.questions import Question
from searchrl.training.dynamic_sampling import collect_teaching
from searchrl.training.learner import Group, Metrics
from searchrl.training.options import RolloutOptions
from searchrl.training.rollout import Rollout
from tests.training_fixtures import episode

QUESTIONS = [Question(f"q{n}", f"What is {n}?", (str(n),)) for n in range(12)]


def sample(
    teaches: Callable[[str], bool],
    rounds: int,
    step: int = 0,
    asked: int = 4,
    drop_equal: bool = False,
) -> tuple[Rollout, Metrics, list[list[str]]]:
    """Run one step of questions that teach or not; also says which were asked in each round."""
    calls: list[list[str]] = []

    async def roll(questions: Sequence[Question]) -> Rollout:
        calls.append([question.id for question in questions])
        made = [
            Group(
                (episode(0, 1.0, name=q.id), episode(1, 0.0 if teaches(q.id) else 1.0, name=q.id))
            )
            for q in questions
        ]
        return Rollout(tuple(e for group in made for e in group.episodes), tuple(made))

    options = RolloutOptions(refill_rounds=rounds, drop_equal_groups=drop_equal)
    run = collect_teaching(roll, QUESTIONS, QUESTIONS[:asked], options, 7, step)
    rollout, metrics = asyncio.run(run)
    return rollout, metrics, calls


def names(rollout: Rollout) -> list[str]:
    return [group.episodes[0].question.id for group in rollout.groups]


def test_without_rounds_every_group_stays() -> None:
    rollout, metrics, calls = sample(lambda name: name != "q1", rounds=0)
    assert names(rollout) == ["q0", "q1", "q2", "q3"] == calls[0]
    assert metrics == {"groups/all_equal": 0.25, "groups/refills": 0}


def test_groups_that_teach_nothing_may_go_without_others_in_their_place() -> None:
    rollout, metrics, calls = sample(lambda name: name != "q1", rounds=0, drop_equal=True)
    assert names(rollout) == ["q0", "q2", "q3"]
    assert len(calls) == 1
    assert len(rollout.episodes) == 8
    assert metrics == {"groups/all_equal": 0.25, "groups/refills": 0}


def test_groups_that_teach_nothing_are_replaced_by_questions_not_asked_yet() -> None:
    rollout, metrics, calls = sample(lambda name: name not in ("q1", "q2"), rounds=3)
    assert len(calls) == 2
    assert len(calls[1]) == 2
    assert not set(calls[0]) & set(calls[1])
    assert names(rollout) == ["q0", "q3", *calls[1]]
    assert metrics == {"groups/all_equal": pytest.approx(2 / 6), "groups/refills": 1}
    assert len(rollout.episodes) == 12


def test_a_step_asks_the_same_again_and_another_step_others() -> None:
    first, again, later = (sample(lambda name: name == "q0", 2, step)[2] for step in (5, 5, 6))
    assert first == again
    assert first != later


def test_rounds_and_questions_are_bounded() -> None:
    assert len(sample(lambda name: name == "q0", rounds=2)[2]) == 3
    _, metrics, calls = sample(lambda name: name == "q0", rounds=99)
    asked = [name for call in calls for name in call]
    assert len(asked) == len(set(asked)) == 12
    assert metrics["groups/refills"] == len(calls) - 1


def test_where_nothing_teaches_the_step_keeps_what_it_began_with() -> None:
    rollout, metrics, _ = sample(lambda name: False, rounds=1)
    assert names(rollout) == ["q0", "q1", "q2", "q3"]
    assert metrics["groups/all_equal"] == 1
