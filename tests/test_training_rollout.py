"""Rollouts: which questions, which seeds, and what a failed service does to a step."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.agents.agent import Draw
from searchrl.agents.episode import EndReason, Episode, Reward, Segment
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.training.options import RolloutOptions
from searchrl.training.rollout import Rollout, collect, questions_of_step

QUESTIONS = [Question(f"q{n}", f"What is {n}?", (str(n),)) for n in range(12)]


class FakeAgent:
    """Samples one token; attempts at the named questions meet a dead service."""

    name = "fake"

    def __init__(self, failing: tuple[tuple[str, int], ...] = (), silent: tuple[str, ...] = ()):
        self.draws: list[tuple[str, Draw]] = []
        self._failing, self._silent = failing, silent

    async def run(self, question: Question, draw: Draw) -> Episode:
        sample = sum(name == question.id for name, _ in self.draws)
        self.draws.append((question.id, draw))
        await asyncio.sleep(0)
        episode = Episode(question, self.name, [Segment("prompt", (1,), "")])
        if question.id not in self._silent:
            episode.segments.append(Segment("model", (2,), "", (-0.5,)))
        if (question.id, sample) in self._failing:
            episode.end, episode.error = EndReason.INFRASTRUCTURE, "no route"
        return episode


class Constant:
    """A reward that pays whatever happened; ``None`` for the questions named."""

    def __init__(self, unscored: tuple[str, ...] = ()) -> None:
        self._unscored = unscored

    async def score(self, episode: Episode) -> Reward:
        return Reward(None if episode.question.id in self._unscored else 1.0)


def roll(
    agent: FakeAgent,
    reward: Constant | None = None,
    questions: int = 4,
    group_size: int = 3,
    smallest: int = 2,
    seed: int = 7,
    step: int = 0,
) -> Rollout:
    options = RolloutOptions(group_size=group_size, temperature=0.7)
    asked = QUESTIONS[:questions]
    return asyncio.run(collect(agent, reward or Constant(), asked, options, seed, step, smallest))


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(0, 3))
def test_no_question_comes_twice_in_an_epoch(seed: int, count: int, epoch: int) -> None:
    steps = len(QUESTIONS) // count
    asked = [
        question.id
        for step in range(epoch * steps, (epoch + 1) * steps)
        for question in questions_of_step(QUESTIONS, step, count, seed)
    ]
    assert len(asked) == steps * count
    assert max(Counter(asked).values()) == 1
    if len(QUESTIONS) % count == 0:
        assert set(asked) == {question.id for question in QUESTIONS}


def test_the_order_is_a_function_of_seed_and_step_and_differs_between_epochs() -> None:
    first = [questions_of_step(QUESTIONS, step, 4, 0) for step in range(9)]
    backwards = [questions_of_step(QUESTIONS, step, 4, 0) for step in reversed(range(9))]
    assert first == backwards[::-1]
    assert first[:3] != first[3:6] != first[6:]
    assert first[:3] != [questions_of_step(QUESTIONS, step, 4, 1) for step in range(3)]


def test_what_an_uneven_epoch_leaves_out_changes_from_epoch_to_epoch() -> None:
    asked = {q.id for step in range(40) for q in questions_of_step(QUESTIONS, step, 5, 0)}
    assert asked == {question.id for question in QUESTIONS}


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(InputError, match="needs 13 questions and 12"):
        questions_of_step(QUESTIONS, 0, 13, 0)


def test_seeds_differ_by_run_step_question_and_sample_and_repeat() -> None:
    seeds: list[int] = []
    for seed, step in ((7, 0), (7, 1), (8, 0)):
        agent, again = FakeAgent(), FakeAgent()
        roll(agent, seed=seed, step=step)
        roll(again, seed=seed, step=step)
        assert agent.draws == again.draws
        assert {draw.temperature for _, draw in agent.draws} == {0.7}
        seeds += [draw.seed for _, draw in agent.draws]
    assert len(set(seeds)) == len(seeds) == 36


def test_a_seed_does_not_depend_on_the_other_questions() -> None:
    few, many = FakeAgent(), FakeAgent()
    roll(few, questions=2)
    roll(many, questions=5)
    assert few.draws == many.draws[: len(few.draws)]


def test_a_group_is_the_episodes_of_one_question() -> None:
    rollout = roll(FakeAgent())
    assert [len(group.episodes) for group in rollout.groups] == [3] * 4
    for question, group in zip(QUESTIONS, rollout.groups, strict=False):
        assert {episode.question for episode in group.episodes} == {question}


def test_a_failed_episode_leaves_its_group_and_is_kept_for_the_record() -> None:
    rollout = roll(FakeAgent(failing=(("q1", 0),)))
    assert [len(group.episodes) for group in rollout.groups] == [3, 2, 3, 3]
    assert len(rollout.episodes) == 12
    assert all(e.error is None for group in rollout.groups for e in group.episodes)


def test_a_failure_is_never_a_reward_even_where_a_reward_function_pays_for_it() -> None:
    rollout = roll(FakeAgent(failing=(("q0", 0), ("q0", 1))))
    paid = [episode for group in rollout.groups for episode in group.episodes]
    assert not any(episode.error for episode in paid)
    assert [len(group.episodes) for group in rollout.groups] == [3, 3, 3]


@pytest.mark.parametrize(("smallest", "groups"), [(1, 4), (2, 3)])
def test_a_group_without_a_baseline_leaves_the_step(smallest: int, groups: int) -> None:
    rollout = roll(FakeAgent(failing=(("q0", 0), ("q0", 1))), smallest=smallest)
    assert len(rollout.groups) == groups


def test_an_episode_without_a_sampled_token_leaves_its_group() -> None:
    assert len(roll(FakeAgent(silent=("q2",))).groups) == 3


def test_too_many_failures_stop_training() -> None:
    agent = FakeAgent(failing=tuple(("q0", sample) for sample in range(3)))
    with pytest.raises(InfrastructureError, match=r"3 of 12 episodes.*no route"):
        roll(agent)


def test_episodes_without_a_reward_count_as_failures() -> None:
    with pytest.raises(InfrastructureError, match="3 of 12 episodes"):
        roll(FakeAgent(), Constant(unscored=("q0",)))
