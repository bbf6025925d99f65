"""Losses against short references, their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchrl.training.losses import (
    KlEstimator,
    clipped_fraction,
    kl_estimates,
    policy_losses,
    value_losses,
)

NUMBERS = st.floats(-3, 3, allow_nan=False)
TRIPLES = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=20)
CLIPS = st.floats(0.05, 0.9)


def columns(rows: list[tuple[float, ...]]) -> list[torch.Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


@given(TRIPLES, CLIPS, CLIPS)
def test_policy_loss_equals_its_definition(
    rows: list[tuple[float, ...]], low: float, high: float
) -> None:
    new, old, advantages = columns(rows)
    expected = []
    for n, o, a in rows:
        ratio = np.exp(n - o)
        expected.append(-min(a * ratio, a * np.clip(ratio, 1 - low, 1 + high)))
    losses = policy_losses(new, old, advantages, low, high).numpy()
    np.testing.assert_allclose(losses, expected, rtol=1e-12, atol=1e-12)
    outside = sum(not 1 - low <= np.exp(n - o) <= 1 + high for n, o, _ in rows)
    assert int(clipped_fraction(new, old, low, high)) == outside


@given(TRIPLES, CLIPS)
def test_value_loss_equals_its_definition(rows: list[tuple[float, ...]], clip: float) -> None:
    values, old, returns = columns(rows)
    expected = [
        max((v - r) ** 2, (np.clip(v, o - clip, o + clip) - r) ** 2) / 2 for v, o, r in rows
    ]
    losses = value_losses(values, old, returns, clip).numpy()
    np.testing.assert_allclose(losses, expected, rtol=1e-10, atol=1e-10)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_kl_estimates_equal_their_definitions(rows: list[tuple[float, ...]]) -> None:
    policy, reference = columns(rows)
    difference = policy.numpy() - reference.numpy()
    expected = {
        "k1": difference,
        "k2": difference**2 / 2,
        "k3": np.exp(-difference) - 1 + difference,
    }
    for estimator in ("k1", "k2", "k3"):
        found = kl_estimates(policy, reference, estimator).numpy()
        np.testing.assert_allclose(found, expected[estimator], rtol=1e-10, atol=1e-10)
    assert (kl_estimates(policy, reference, "k3") >= -1e-12).all()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimates_have_the_divergence_as_their_mean(estimator: KlEstimator) -> None:
    torch.manual_seed(0)
    policy = torch.log_softmax(torch.randn(6, dtype=torch.float64), 0)
    reference = torch.log_softmax(torch.randn(6, dtype=torch.float64), 0)
    exact = float((policy.exp() * (policy - reference)).sum())
    mean = float((policy.exp() * kl_estimates(policy, reference, estimator)).sum())
    assert mean == pytest.approx(exact, abs=1e-12)


def test_k3_does_not_overflow_nor_give_a_gradient_that_does() -> None:
    policy = torch.tensor([-500.0, -0.1], requires_grad=True)
    estimates = kl_estimates(policy, torch.tensor([-0.1, -500.0]), "k3")
    estimates.sum().backward()
    assert estimates.tolist() == pytest.approx([np.exp(10) - 11, 498.9], rel=1e-4)
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_the_first_gradient_raises_what_was_better_and_lowers_what_was_worse(
    advantage: float,
) -> None:
    new = torch.tensor([-1.3], requires_grad=True)
    policy_losses(new, new.detach(), torch.tensor([advantage]), 0.2, 0.2).sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [-advantage]


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "moves"),
    [
        (0.5, 1.0, False),  # far enough up already
        (0.5, -1.0, True),  # has to come down
        (-0.5, -1.0, False),  # far enough down already
        (-0.5, 1.0, True),  # has to come up
        (0.1, 1.0, True),
        (-0.1, -1.0, True),
    ],
)
def test_clipping_stops_only_the_way_it_already_went(
    log_ratio: float, advantage: float, moves: bool
) -> None:
    new = torch.tensor([log_ratio], requires_grad=True)
    policy_losses(new, torch.zeros(1), torch.tensor([advantage]), 0.2, 0.2).sum().backward()
    assert new.grad is not None
    assert bool(new.grad.abs() > 0) is moves


def finite_differences(
    function: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor
) -> torch.Tensor:
    step = 1e-6
    shifts = step * torch.eye(len(point), dtype=torch.float64)
    rows = [(function(point + s) - function(point - s)).sum() / (2 * step) for s in shifts]
    return torch.stack(rows)


@given(st.integers(0, 10_000))
def test_gradients_equal_finite_differences(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    new, old, other = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    functions: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: policy_losses(x, old, other, 0.2, 0.3),
        lambda x: value_losses(x, old, other, 0.5),
        lambda x: kl_estimates(x, old, "k2"),
        lambda x: kl_estimates(x, old, "k3"),
    ]
    for function in functions:
        point = new.clone().requires_grad_()
        function(point).sum().backward()
        assert point.grad is not None
        estimate = finite_differences(function, new)
        torch.testing.assert_close(point.grad, estimate, rtol=1e-4, atol=1e-6)
