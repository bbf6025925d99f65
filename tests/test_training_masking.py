"""Which tokens are learned from: sampled ones alone, and retrieved ones where masking is off."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from searchrl.agents.episode import Episode, Segment
from searchrl.training.learner import Group
from tests.training_fixtures import (
    MIXED,
    PPO,
    assert_bitwise_equal,
    assert_close,
    episode,
    gradients_of,
    groups,
    learner,
    state,
    tiny_model,
)

IN_LOSS = {"kl_placement": "loss", "kl_estimator": "k3"}


def relabelled(made: Episode) -> Episode:
    """The same episode with a trailing observation, whose tokens follow all that is learned."""
    extra = Segment("environment", (7, 8, 9, 10, 11, 12), "")
    return Episode(made.question, "s3", [*made.segments, extra], reward=made.reward)


@pytest.mark.parametrize("values", [{}, PPO])
def test_what_a_last_observation_says_carries_no_gradient(values: dict[str, Any]) -> None:
    made = [episode(seed, float(seed % 2)) for seed in range(4)]
    first = [relabelled(one) for one in made]
    second = copy.deepcopy(first)
    for one in second:
        one.segments[-1] = Segment("environment", (20, 21, 22, 23, 24, 25), "")
    assert_bitwise_equal(
        gradients_of([Group(tuple(first))], **values),
        gradients_of([Group(tuple(second))], **values),
    )


@pytest.mark.parametrize("values", [{}, PPO])
def test_only_sampled_tokens_enter_the_loss(values: dict[str, Any]) -> None:
    """The same tokens with another mask: the loss over both parts is the sum of their losses."""
    whole = [episode(seed, float(seed % 2), (("prompt", 4), ("model", 6))) for seed in range(4)]
    halves = []
    for origins in (("model", "environment"), ("environment", "model")):
        half = copy.deepcopy(whole)
        for one in half:
            said = one.segments[1]
            one.segments[1:] = [
                Segment(origins[0], said.token_ids[:3], "", said.logprobs[:3]),
                Segment(origins[1], said.token_ids[3:], "", said.logprobs[3:]),
            ]
            for index in (1, 2):
                if one.segments[index].origin == "environment":
                    one.segments[index] = Segment("environment", one.segments[index].token_ids, "")
        halves.append(half)
    values = values | {"lam": 1.0, "gamma": 1.0, "whiten_advantages": False}
    full, left, right = (
        gradients_of([Group(tuple(part))], **values) for part in (whole, halves[0], halves[1])
    )
    # Each is divided by its own number of trainable tokens, the whole by twice as many.
    policy = [name for name in full if name.startswith("searcher.")]
    assert_close(
        {name: 2 * full[name] for name in policy},
        {name: left[name] + right[name] for name in policy},
        1e-5,
    )


def spoken(made: Episode) -> Episode:
    """The same tokens, observations said by the model as well."""
    segments = [
        Segment("model", s.token_ids, "", s.logprobs or (0.0,) * len(s.token_ids))
        if s.origin == "environment"
        else s
        for s in made.segments
    ]
    return Episode(made.question, "s3", segments, reward=made.reward)


@pytest.mark.parametrize(
    "values", [{}, PPO, {**PPO, "kl_coefficient": 0.1}, {"kl_coefficient": 0.1, **IN_LOSS}]
)
def test_without_masking_observations_are_learned_as_if_they_were_said(
    values: dict[str, Any],
) -> None:
    """Over two passes: a single one takes log-probabilities of said tokens as they were noted."""
    made = groups(4, MIXED)
    said = [Group(tuple(spoken(one) for one in group.episodes)) for group in made]
    found, metrics = [], []
    for some, masked in ((made, False), (said, True)):
        subject = learner(reference=tiny_model(9), epochs=2, mask_retrieved=masked, **values)
        metrics.append(subject.update(some, 0))
        found.append(state(subject))
    assert_bitwise_equal(*found)
    assert metrics[0]["trainable_tokens"] == metrics[1]["trainable_tokens"]


def test_without_masking_a_single_step_still_has_a_ratio_of_1() -> None:
    metrics = learner(mask_retrieved=False, **PPO).update(groups(0, MIXED), 0)
    assert metrics["old_kl"] == metrics["clip_fraction"] == 0.0
