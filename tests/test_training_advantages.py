"""Advantages against short references, and the invariants they promise."""

from __future__ import annotations

import statistics

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchrl.training.advantages import generalized_advantages, group_advantages, whiten

Floats = npt.NDArray[np.float64]
NUMBERS = st.floats(-5, 5, allow_nan=False)
STEPS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)
SHARES = st.floats(0, 1)


def reference_gae(rewards: Floats, values: Floats, gamma: float, lam: float) -> Floats:
    """The double sum A_t = sum_l (gamma lam)^l delta_{t+l}, without any recursion."""
    following = np.append(values[1:], 0.0)
    deltas = rewards + gamma * following - values
    steps = len(rewards)
    return np.array(
        [
            sum((gamma * lam) ** (later - now) * deltas[later] for later in range(now, steps))
            for now in range(steps)
        ]
    )


@given(STEPS, SHARES, SHARES)
def test_gae_equals_the_double_sum(
    steps: list[tuple[float, float]], gamma: float, lam: float
) -> None:
    rewards, values = (np.array(column) for column in zip(*steps, strict=True))
    expected = reference_gae(rewards, values, gamma, lam)
    advantages, returns = generalized_advantages(
        torch.tensor(rewards), torch.tensor(values), gamma, lam
    )
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=0, atol=1e-12 * 200)
    np.testing.assert_allclose(returns.numpy(), expected + values, rtol=0, atol=1e-12 * 200)


@given(STEPS)
def test_gae_in_single_precision(steps: list[tuple[float, float]]) -> None:
    rewards, values = (np.array(c, dtype=np.float32) for c in zip(*steps, strict=True))
    advantages, _ = generalized_advantages(torch.tensor(rewards), torch.tensor(values), 0.99, 0.9)
    assert advantages.dtype == torch.float32
    expected = reference_gae(rewards.astype(float), values.astype(float), 0.99, 0.9)
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_gae_does_not_see_the_observation_between_two_outputs() -> None:
    # Mask 111001: four sampled tokens, two read ones before the last. With gamma 1, lambda 0.95,
    # values 0.1 0.2 0.3 0.4 and reward 1 at the end, every step but the last has delta 0.1.
    values = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    rewards = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    advantages, _ = generalized_advantages(rewards, values, 1.0, 0.95)
    assert advantages.tolist() == pytest.approx([0.8, 0.737, 0.67, 0.6], abs=6e-4)


def test_with_gamma_and_lambda_1_every_return_is_the_final_reward() -> None:
    values = torch.tensor([0.3, -0.2, 0.9])
    _, returns = generalized_advantages(torch.tensor([0.0, 0.0, 1.0]), values, 1.0, 1.0)
    torch.testing.assert_close(returns, torch.ones(3))


@given(st.lists(NUMBERS, min_size=2, max_size=30), st.booleans())
def test_group_advantages_equal_their_definition(rewards: list[float], scaled: bool) -> None:
    values = np.array(rewards)
    expected = values - values.mean()
    if scaled:
        expected = expected / (values.std(ddof=1) + 1e-6)
    if len(set(rewards)) == 1:
        expected = np.zeros_like(values)
    np.testing.assert_allclose(group_advantages(rewards, scaled), expected, rtol=1e-9, atol=1e-9)


@given(NUMBERS, st.integers(2, 9), st.booleans())
def test_equal_rewards_give_exact_zeros(reward: float, members: int, scaled: bool) -> None:
    assert group_advantages([reward] * members, scaled) == [0.0] * members


def test_equal_rewards_with_an_inexact_mean_give_exact_zeros() -> None:
    assert sum([0.1] * 3) / 3 != 0.1
    assert group_advantages([0.1] * 3, True) == [0.0] * 3


@given(st.permutations([0.0, 1.0, 1.0, -1.0, 0.5]))
def test_an_advantage_belongs_to_its_reward_not_to_its_place(rewards: list[float]) -> None:
    deviation = statistics.stdev(rewards) + 1e-6
    for reward, advantage in zip(rewards, group_advantages(rewards, True), strict=True):
        assert advantage == pytest.approx((reward - 0.3) / deviation)


@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_a_group_without_a_baseline_is_refused(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        group_advantages(rewards, True)


@given(st.lists(NUMBERS, min_size=2, max_size=40))
def test_whitening_equals_its_definition(numbers: list[float]) -> None:
    values = np.array(numbers)
    expected = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)
    whitened = whiten(torch.tensor(values)).numpy()
    np.testing.assert_allclose(whitened, expected, rtol=1e-9, atol=1e-9)


def test_whitening_one_value_takes_its_mean_and_stays_finite() -> None:
    assert whiten(torch.tensor([3.5])).tolist() == [0.0]
