"""Rows for other trainers: nothing re-tokenised, nothing lost, an observation never at the end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.agents.episode import Action, ActionKind, EndReason, Turn
from searchrl.distributed.episode_facts import facts_of, means, share_of_equal
from searchrl.distributed.trajectory import trajectories
from tests.training_fixtures import episode, random_shape


@given(st.integers(0, 10_000))
def test_a_row_holds_the_episode_up_to_its_last_sampled_token(seed: int) -> None:
    made = episode(seed, 1.0, random_shape(random.Random(seed)))
    [row] = trajectories(made)
    whole = [*row.prompt, *row.response]
    assert made.token_ids[: len(whole)] == whole
    assert not any(made.trainable_mask[len(whole) :])
    assert [bool(m) for m in row.mask] == made.trainable_mask[len(row.prompt) : len(whole)]
    assert row.mask[0] == row.mask[-1] == 1
    assert len(row.response) == len(row.mask) == len(row.logprobs)
    own = [value for value, m in zip(row.logprobs, row.mask, strict=True) if m]
    assert own == made.logprobs


def test_requests_made_apart_are_rows_apart() -> None:
    shape = [("prompt", 3), ("model", 2), ("prompt", 4), ("model", 1), ("environment", 2)]
    made = episode(0, 1.0, shape)  # type: ignore[arg-type]
    first, second = trajectories(made)
    assert (first.prompt, first.response) == (
        made.segments[0].token_ids,
        made.segments[1].token_ids,
    )
    assert (second.prompt, second.response) == (
        made.segments[2].token_ids,
        made.segments[3].token_ids,
    )


def test_an_episode_that_said_nothing_is_no_row() -> None:
    assert trajectories(episode(0, 0.0, [("prompt", 3)])) == []
    assert trajectories(episode(0, 0.0, [])) == []


def test_the_facts_of_a_step_are_means_over_those_that_have_them() -> None:
    one, other = episode(0, 1.0), episode(1, 0.0)
    one.turns = [Turn(Action(ActionKind.SEARCH)), Turn(Action(ActionKind.INVALID))]
    other.turns = [Turn(Action(ActionKind.FINISH))] * 2
    one.end, other.end = EndReason.FINISHED, EndReason.TRUNCATED
    found = means([facts_of(one), facts_of(other)])
    assert found["episodes/finished"] == 0.5
    assert found["episodes/searches"] == 0.5
    assert found["episodes/invalid_turns"] == 0.25
    assert found["episodes/response_tokens"] == 5
    assert found["episodes/truncated"] == 0.5
    assert "episodes/gold_recall" not in found
    assert "value" not in found


def test_groups_whose_rewards_teach_nothing_are_counted() -> None:
    rewards = {("a", "0"): 1.0, ("a", "1"): 1.0, ("b", "0"): 0.0, ("b", "1"): 1.0, ("c", "0"): 0.0}
    facts = {
        session: facts_of(episode(number, reward))
        for number, (session, reward) in enumerate(rewards.items())
    }
    assert share_of_equal(facts) == pytest.approx(2 / 3)
