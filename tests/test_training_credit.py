"""Algorithms, averages and corrections against NumPy written from the papers' formulas."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agents.episode import EndReason
from searchrl.training.averaging import Average, token_weights
from searchrl.training.credit import Evidence, assign_credit, known_to_be_idle
from searchrl.training.importance import truncated_weights
from searchrl.training.kl_control import next_coefficient
from searchrl.training.learner import Group
from searchrl.training.options import LearningOptions
from searchrl.training.reinforce_plus_plus import returns_to_go
from searchrl.training.rloo import leave_one_out_advantages
from tests.training_fixtures import (
    assert_bitwise_equal,
    assert_close,
    episode,
    groups,
    learner,
    merged,
    state,
    tiny_model,
    watch_gradients,
)

Floats = npt.NDArray[np.float64]
NUMBERS = st.floats(-5, 5, allow_nan=False)
REWARDS = st.lists(NUMBERS, min_size=2, max_size=9)
BATCHES = st.lists(st.lists(NUMBERS, min_size=2, max_size=4), min_size=1, max_size=4)
FEW = settings(max_examples=10)
GROUPED = ("grpo", "rloo", "reinforce_plus_plus_baseline")
ALGORITHMS = (*GROUPED, "reinforce_plus_plus", "ppo")


def evidence(seed: int, rewards: Sequence[Sequence[float]]) -> list[list[Evidence]]:
    """Episodes of one to six tokens, with whatever an algorithm may ask for."""
    draw = torch.Generator().manual_seed(seed)

    def one(reward: float) -> Evidence:
        length = int(torch.randint(1, 7, (1,), generator=draw))
        rows = torch.randn(3, length, generator=draw, dtype=torch.float64)
        return Evidence(reward, True, rows[0], rows[1], rows[2])

    return [[one(reward) for reward in row] for row in rewards]


def advantages(
    made: Sequence[Sequence[Evidence]], kl: float = 0.0, **values: Any
) -> list[list[Floats]]:
    if kl:
        values |= {"kl_coefficient": kl, "kl_placement": "reward"}
    credits = assign_credit(made, LearningOptions(**values), kl)
    return [[credit.advantages_T.numpy() for credit in group] for group in credits]


def flat(rows: Sequence[Sequence[Floats]]) -> Floats:
    return np.concatenate([row for group in rows for row in group])


def prices(episode: Evidence, kl: float) -> Floats:
    assert episode.reference_logprobs_T is not None
    return kl * (episode.old_logprobs_T - episode.reference_logprobs_T).numpy()


@FEW
@given(REWARDS)
def test_leave_one_out_equals_its_definition(rewards: list[float]) -> None:
    expected = [
        reward - np.mean([other for j, other in enumerate(rewards) if j != i])
        for i, reward in enumerate(rewards)
    ]
    np.testing.assert_allclose(leave_one_out_advantages(rewards), expected, atol=1e-12)


@FEW
@given(REWARDS)
def test_leave_one_out_is_grpo_without_deviation_up_to_a_factor(rewards: list[float]) -> None:
    size = len(rewards)
    centred = np.array(rewards) - np.mean(rewards)
    found = leave_one_out_advantages(rewards)
    np.testing.assert_allclose(found, centred * size / (size - 1), atol=1e-9)


@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_leave_one_out_needs_another(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out_advantages(rewards)


def test_an_episode_alone_is_credited_with_its_reward_where_that_is_asked_for() -> None:
    values: dict[str, Any] = {"algorithm": "grpo", "lone_episodes": True}
    made = evidence(0, [[1.0], [0.0], [0.5]])
    for [one], [found] in zip(made, advantages(made, **values), strict=True):
        np.testing.assert_array_equal(found, one.reward)
    assert known_to_be_idle([[1.0], [0.0]], LearningOptions(**values)) == [[False], [True]]


@FEW
@given(st.integers(0, 99), BATCHES, st.sampled_from([0.0, 0.3]))
def test_rloo_takes_the_divergence_of_the_whole_episode_from_its_reward(
    seed: int, rewards: list[list[float]], kl: float
) -> None:
    made = evidence(seed, rewards)
    for group, found in zip(made, advantages(made, kl, algorithm="rloo"), strict=True):
        totals = [one.reward - prices(one, kl).sum() for one in group]
        for index, (one, vector) in enumerate(zip(group, found, strict=True)):
            others = totals[:index] + totals[index + 1 :]
            expected = totals[index] - np.mean(others)
            np.testing.assert_allclose(
                vector, np.full(len(one.old_logprobs_T), expected), atol=1e-9
            )


@FEW
@given(st.lists(NUMBERS, min_size=1, max_size=9), st.floats(0.1, 1))
def test_returns_to_go_equal_the_sum(rewards: list[float], gamma: float) -> None:
    steps = len(rewards)
    expected = [
        sum(gamma ** (later - now) * rewards[later] for later in range(now, steps))
        for now in range(steps)
    ]
    found = returns_to_go(torch.tensor(rewards, dtype=torch.float64), gamma)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


@FEW
@given(st.integers(0, 99), BATCHES, st.sampled_from([0.0, 0.2]), st.sampled_from([1.0, 0.9]))
def test_reinforce_plus_plus_normalises_returns_over_the_whole_step(
    seed: int, rewards: list[list[float]], kl: float, gamma: float
) -> None:
    made = evidence(seed, rewards)
    rows = []
    for one in (one for group in made for one in group):
        token_rewards = -prices(one, kl)
        token_rewards[-1] += one.reward
        powers = gamma ** np.arange(len(token_rewards))
        rows.append([(powers[: len(token_rewards) - t] * token_rewards[t:]).sum()
                     for t in range(len(token_rewards))])  # fmt: skip
    pooled = np.concatenate(rows)
    expected = (pooled - pooled.mean()) / np.sqrt(pooled.var(ddof=1) + 1e-8)
    found = flat(advantages(made, kl, algorithm="reinforce_plus_plus", gamma=gamma))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@FEW
@given(st.integers(0, 99), BATCHES)
def test_its_baseline_is_the_groups_mean_and_normalisation_comes_after(
    seed: int, rewards: list[list[float]]
) -> None:
    made = evidence(seed, rewards)
    pooled = np.concatenate(
        [
            np.full(len(one.old_logprobs_T), one.reward - np.mean([e.reward for e in group]))
            for group in made
            for one in group
        ]
    )
    if all(len(set(row)) == 1 for row in rewards):
        pooled = np.zeros_like(pooled)
    expected = (pooled - pooled.mean()) / np.sqrt(pooled.var(ddof=1) + 1e-8)
    found = flat(advantages(made, algorithm="reinforce_plus_plus_baseline"))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@FEW
@given(st.integers(0, 99), BATCHES, st.randoms(use_true_random=False))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_credit_belongs_to_the_episode_not_to_its_place(
    algorithm: str, seed: int, rewards: list[list[float]], draw: random.Random
) -> None:
    made = evidence(seed, rewards)
    before = advantages(made, algorithm=algorithm)
    shuffled = [draw.sample(group, len(group)) for group in made]
    after = advantages(shuffled, algorithm=algorithm)
    for old, new, values, moved in zip(made, shuffled, before, after, strict=True):
        for one, vector in zip(old, values, strict=True):
            place = next(i for i, other in enumerate(new) if other is one)
            np.testing.assert_allclose(moved[place], vector, rtol=1e-7, atol=1e-7)


@FEW
@given(st.integers(0, 99), BATCHES, NUMBERS)
@pytest.mark.parametrize("algorithm", GROUPED)
def test_what_every_member_earns_changes_nothing(
    algorithm: str, seed: int, rewards: list[list[float]], gift: float
) -> None:
    rewards = [[round(reward) for reward in row] for row in rewards]
    raised = [[reward + round(gift) for reward in row] for row in rewards]
    one = flat(advantages(evidence(seed, rewards), algorithm=algorithm))
    other = flat(advantages(evidence(seed, raised), algorithm=algorithm))
    np.testing.assert_allclose(other, one, atol=1e-6)


@FEW
@given(st.integers(0, 99), BATCHES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_known_to_be_idle_gets_exact_zeros(
    algorithm: str, seed: int, rewards: list[list[float]]
) -> None:
    equal = [[0.1] * len(row) for row in rewards]
    for batch in (equal, [*rewards, [0.1] * 3]):
        idle = known_to_be_idle(batch, LearningOptions(algorithm=algorithm))
        assert [len(row) for row in idle] == [len(row) for row in batch]
        found = advantages(evidence(seed, batch), algorithm=algorithm)
        for flags, vectors in zip(idle, found, strict=True):
            for flag, vector in zip(flags, vectors, strict=True):
                assert not flag or not vector.any()
        if algorithm != "ppo" and batch is equal:
            assert all(flag for row in idle for flag in row)


def test_a_price_on_divergence_leaves_nothing_known_to_be_idle() -> None:
    for algorithm in ("rloo", "reinforce_plus_plus"):
        options = LearningOptions(algorithm=algorithm, kl_coefficient=0.1)
        assert known_to_be_idle([[1.0, 1.0]], options) == [[False, False]]


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce_plus_plus"])
def test_an_episode_left_out_takes_no_part_in_the_normalisation(algorithm: str) -> None:
    made = evidence(3, [[1.0, 0.0], [0.5, 9.0]])
    out = Evidence(9.0, False, *(made[1][1].old_logprobs_T,) * 3)
    some = advantages([made[0], [made[1][0], out]], algorithm=algorithm)
    alone = advantages([made[0], made[1][:1]], algorithm=algorithm)
    assert not some[1][1].any()
    np.testing.assert_array_equal(flat(some)[: len(flat(alone))], flat(alone))


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)


@FEW
@given(LENGTHS, st.integers(1, 50))
def test_token_weights_equal_their_definitions(lengths: list[int], constant: int) -> None:
    counted = [length for length in lengths if length]
    for average, expected in (
        ("token", lambda length: 1 / sum(counted)),
        ("episode", lambda length: 1 / len(counted) / length),
        ("constant", lambda length: 1 / len(counted) / constant),
    ):
        found = token_weights(lengths, average, constant)
        assert found == pytest.approx([expected(n) if n else 0.0 for n in lengths])
        if average != "constant":
            assert np.dot(found, lengths) == pytest.approx(1)


def test_a_constant_average_does_not_see_lengths() -> None:
    for average, biased in (("token", True), ("episode", True), ("constant", False)):
        short = token_weights([4, 4], average, 10)[0]
        beside_longer = token_weights([4, 40], average, 10)
        assert (beside_longer[0] != short or beside_longer[1] != short) is biased, average


def test_a_constant_average_needs_its_constant() -> None:
    with pytest.raises(ValueError, match="constant"):
        token_weights([1], "constant", None)


@FEW
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=9), st.floats(0.5, 5))
def test_importance_weights_are_the_ratio_up_to_the_cap(
    rows: list[tuple[float, float]], cap: float
) -> None:
    trainer, rollout = np.array(rows).T
    found = truncated_weights(torch.tensor(trainer), torch.tensor(rollout), cap)
    np.testing.assert_allclose(found, np.minimum(np.exp(trainer - rollout), cap), rtol=1e-9)


def test_an_importance_weight_does_not_overflow() -> None:
    weights = truncated_weights(torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0]), 2.0)
    assert weights.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("divergence", "factor"),
    [(0.1, 1.0), (0.11, 1.01), (1.0, 1.02), (0.0, 0.98), (float("inf"), 1.02)],
)
def test_the_controller_follows_the_cut_relative_error(divergence: float, factor: float) -> None:
    assert next_coefficient(0.5, divergence, 0.1, 100, 1000) == pytest.approx(0.5 * factor)


def test_a_controller_never_turns_a_penalty_into_a_bonus() -> None:
    assert next_coefficient(0.5, 0.0, 0.1, 100, 10) == 0.0


class TestInTheLearner:
    def test_an_adapted_coefficient_is_used_and_noted(self) -> None:
        values = {"kl_coefficient": 0.1, "kl_placement": "loss", "kl_target": 1e-9}
        subject = learner(tiny_model(), tiny_model(9), kl_horizon=10, **values)
        noted = [subject.update(groups(0, [[1.0, 0.0]]), n)["kl_coefficient"] for n in range(3)]
        assert noted == pytest.approx([0.1 * 1.04**n for n in range(3)])

    @pytest.mark.parametrize("average", ["token", "episode", "constant"])
    def test_micro_batches_change_no_average(self, average: Average) -> None:
        values = {"loss_average": average, "loss_constant": 7 if average == "constant" else None}
        made = groups(8, [[1.0, 0.0, 0.5], [0.0, 1.0]])
        whole, cut = (gradients(made, tokens_per_micro_batch=n, **values) for n in (16_384, 1))
        assert_close(cut, whole, 1e-5)

    def test_the_averages_weigh_episodes_as_they_say(self) -> None:
        """Two episodes' gradients, each alone under a constant, mixed by the rule's weights."""
        short = episode(1, 1.0, (("prompt", 4), ("model", 2)))
        long = episode(2, 0.0, (("prompt", 4), ("model", 6)))
        parts = []
        for left_out in (long, short):
            left_out.end = EndReason.TRUNCATED
            only = {"mask_truncated": True, "loss_average": "constant", "loss_constant": 1}
            parts.append(gradients([Group((short, long))], **only))
            left_out.end = EndReason.FINISHED
        for average, mix in (("token", (1 / 8, 1 / 8)), ("episode", (1 / 4, 1 / 12))):
            expected = {k: mix[0] * parts[0][k] + mix[1] * parts[1][k] for k in parts[0]}
            assert_close(gradients([Group((short, long))], loss_average=average), expected, 1e-5)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_a_step_of_truncated_episodes_leaves_everything(self, algorithm: str) -> None:
        subject = learner(algorithm=algorithm, mask_truncated=True, weight_decay=0.1)
        before = state(subject)
        made = groups(0, [[1.0, 0.0]])
        for one in made[0].episodes:
            one.end = EndReason.TRUNCATED
        metrics = subject.update(made, 0)
        assert metrics["grad_norm"] == 0
        assert_bitwise_equal(state(subject), before)

    def test_importance_weights_scale_the_policy_loss(self) -> None:
        made = groups(0, [[1.0, 0.0]])
        plain = gradients(made)
        # Random noted log-probabilities far above the model's own: every weight is at the cap.
        for one in made[0].episodes:
            for index, segment in enumerate(one.segments):
                noted = tuple(-1e3 for _ in segment.logprobs)
                one.segments[index] = type(segment)(
                    segment.origin, segment.token_ids, segment.text, noted
                )
        subject = learner(importance_cap=2.0)
        seen = watch_gradients(subject)
        assert subject.update(made, 0)["importance_capped"] == 1.0
        assert_close(merged(seen), {name: 2 * value for name, value in plain.items()}, 1e-5)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_every_algorithm_raises_what_was_rewarded(self, algorithm: str) -> None:
        made = groups(4, [[1.0, 0.0, 0.0], [0.0, 1.0]])
        subject = learner(algorithm=algorithm, learning_rate=1e-3)
        first = subject.update(made, 0)
        assert (first["old_kl"], first["clip_fraction"]) == (0, 0)
        again = learner(algorithm=algorithm, learning_rate=1e-3)
        assert again.update(made, 0) == first
        assert_bitwise_equal(state(again), state(subject))
        before, after = (likelihood(model, made) for model in (tiny_model(), subject.searcher))
        assert after > before


def gradients(made: Sequence[Group], **values: Any) -> dict[str, torch.Tensor]:
    subject = learner(**values)
    seen = watch_gradients(subject)
    subject.update(made, 0)
    return merged(seen)


def likelihood(model: Any, made: Sequence[Group]) -> float:
    """Log-probability of what was rewarded less that of what was not, a token."""
    total = 0.0
    with torch.no_grad():
        for one in (one for group in made for one in group.episodes):
            logprobs = torch.log_softmax(model(torch.tensor([one.token_ids])).logits[0], -1)
            places = [i for i, sampled in enumerate(one.trainable_mask) if sampled]
            mean = np.mean([float(logprobs[i - 1, one.token_ids[i]]) for i in places])
            assert one.reward is not None
            assert one.reward.value is not None
            total += mean if one.reward.value else -mean
    return total
