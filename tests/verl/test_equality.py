"""verl's own functions and ours, given the same tokens, give the same numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils.torch_functional import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
)
from verl.workers.config import ActorConfig

from searchrl.distributed.trajectory import trajectories
from searchrl.training.advantages import generalized_advantages, group_advantages, whiten
from searchrl.training.importance import truncated_weights
from searchrl.training.losses import kl_estimates, policy_losses, value_losses
from tests.training_fixtures import episode, random_shape

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@dataclass(frozen=True)
class Step:
    """Some episodes as verl's padded rows, and the same numbers as flat vectors of ours."""

    mask: torch.Tensor
    rewards: list[float]

    @property
    def lengths(self) -> list[int]:
        return self.mask.sum(1).int().tolist()

    def row(self, flat: torch.Tensor) -> torch.Tensor:
        """Padded rows of a flat vector; what is no sampled token is far from 0, to be seen."""
        rows = torch.full(self.mask.shape, 7.0)
        rows[self.mask.bool()] = flat
        return rows

    def scores(self) -> torch.Tensor:
        """The reward on the last token of each row, as verl's agent loop puts it."""
        scores = torch.zeros(self.mask.shape)
        for number, reward in enumerate(self.rewards):
            scores[number, _end(self.mask[number])] = reward
        return scores


def _end(mask: torch.Tensor) -> int:
    return int(mask.nonzero().max())


@pytest.fixture(params=range(5))
def step(request: pytest.FixtureRequest) -> Step:
    draw = random.Random(request.param)
    rewards = [draw.choice([0.0, 1.0, -1.0]) for _ in range(8)]
    made = [episode(draw.randrange(1000), reward, random_shape(draw)) for reward in rewards]
    parts = [part for one in made for part in trajectories(one)]
    width = max(len(part.mask) for part in parts)
    mask = torch.zeros(len(parts), width)
    for number, part in enumerate(parts):
        mask[number, : len(part.mask)] = torch.tensor(part.mask, dtype=torch.float32)
    return Step(mask, rewards)


def flat(step: Step, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(step.mask.sum()), generator=generator)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.9), (0.97, 0.5)])
def test_gae_and_whitening(step: Step, gamma: float, lam: float) -> None:
    values = flat(step, 1)
    theirs, returns = core_algos.compute_gae_advantage_return(
        step.scores(), step.row(values) * step.mask, step.mask, gamma, lam
    )
    ours: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    for reward, part in zip(step.rewards, values.split(step.lengths), strict=True):
        rewards = torch.zeros(len(part))
        rewards[-1] = reward
        advantages, its_returns = generalized_advantages(rewards, part, gamma, lam)
        ours.append(advantages)
        expected.append(its_returns)
    torch.testing.assert_close(returns[step.mask.bool()], torch.cat(expected), **CLOSE)
    torch.testing.assert_close(theirs[step.mask.bool()], whiten(torch.cat(ours)), **CLOSE)


def test_a_reward_on_a_trailing_observation_would_be_lost() -> None:
    made = episode(0, 1.0, [("prompt", 4), ("model", 3), ("environment", 5)])
    [part] = trajectories(made)
    assert part.mask == (1, 1, 1)
    kept = torch.tensor([part.mask], dtype=torch.float32)
    # What verl makes of the row with the observation still on it.
    untrimmed = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 0]])

    def returns(mask: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros_like(mask)
        scores[0, -1] = 1.0
        _, found = core_algos.compute_gae_advantage_return(
            scores, torch.zeros_like(mask), mask, 1.0, 1.0
        )
        return found[mask.bool()]

    assert returns(kept).tolist() == [1, 1, 1]
    assert returns(untrimmed).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("size", [2, 4])
def test_group_advantages(step: Step, scaled: bool, size: int) -> None:
    groups = np.array([number // size for number in range(len(step.rewards))])
    theirs, _ = core_algos.compute_grpo_outcome_advantage(
        step.scores(), step.mask, groups, norm_adv_by_std_in_grpo=scaled
    )
    expected = [
        value
        for start in range(0, len(step.rewards), size)
        for value in group_advantages(step.rewards[start : start + size], scaled)
    ]
    for row, mask, value in zip(theirs, step.mask, expected, strict=True):
        torch.testing.assert_close(
            row[mask.bool()], torch.full((int(mask.sum()),), value), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.3)])
def test_the_policy_loss_and_its_gradient(step: Step, low: float, high: float) -> None:
    old, advantages = flat(step, 2) * 0.5 - 2, flat(step, 4)
    new = (old + 0.5 * flat(step, 3)).requires_grad_()
    again = new.detach().clone().requires_grad_()
    config = ActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=1e9,
        use_dynamic_bsz=True,
    )
    theirs, _ = core_algos.compute_policy_loss_vanilla(
        step.row(old), step.row(new), step.row(advantages), step.mask, "token-mean", config
    )
    ours = policy_losses(again, old, advantages, low, high).sum() / step.mask.sum()
    torch.testing.assert_close(theirs, ours, **CLOSE)
    theirs.backward()
    ours.backward()
    torch.testing.assert_close(new.grad, again.grad, **CLOSE)


def test_the_importance_cap_weighs_as_theirs_does(step: Step) -> None:
    sampled, advantages = flat(step, 2) * 0.5 - 2, flat(step, 4)
    old, new = sampled + 0.7 * flat(step, 3), sampled + 0.7 * flat(step, 7)
    padded = torch.zeros_like(step.mask)
    padded[step.mask.bool()] = old - sampled
    weights, _ = compute_rollout_correction_weights(padded, step.mask, "token", 1.5)
    importance = truncated_weights(old, sampled, 1.5)
    assert 0 < int((importance >= 1.5).sum()) < len(importance)
    torch.testing.assert_close(weights[step.mask.bool()], importance, **CLOSE)
    config = ActorConfig(strategy="fsdp2", rollout_n=1, clip_ratio_c=1e9, use_dynamic_bsz=True)
    rows = (step.row(old), step.row(new), step.row(advantages), step.mask, "token-mean", config)
    theirs, _ = core_algos.compute_policy_loss_vanilla(*rows, weights)
    ours = policy_losses(new, old, advantages, 0.2, 0.2) * importance
    torch.testing.assert_close(theirs, ours.sum() / step.mask.sum(), **CLOSE)


def test_the_value_loss(step: Step) -> None:
    old, new, returns = flat(step, 1), flat(step, 2), flat(step, 3)
    theirs, _ = core_algos.compute_value_loss(
        step.row(new), step.row(returns), step.row(old), step.mask, 0.5
    )
    ours = value_losses(new, old, returns, 0.5).sum() / step.mask.sum()
    torch.testing.assert_close(theirs, ours, **CLOSE)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimates(step: Step, estimator: Literal["k1", "k2", "k3"]) -> None:
    policy, reference = 0.4 * flat(step, 5), 0.4 * flat(step, 6)
    theirs = core_algos.kl_penalty(policy, reference, estimator)
    torch.testing.assert_close(theirs, kl_estimates(policy, reference, estimator), **CLOSE)


def test_k3_is_cut_at_ten_there_and_not_here() -> None:
    policy, reference = torch.tensor([0.0]), torch.tensor([4.0])
    assert core_algos.kl_penalty(policy, reference, "k3").item() == 10
    assert kl_estimates(policy, reference, "k3").item() == pytest.approx(np.exp(4) - 5)


def test_one_fixed_denominator_whatever_the_micro_batches(step: Step) -> None:
    losses = step.row(flat(step, 8))
    tokens = int(step.mask.sum())

    def over(parts: Sequence[slice]) -> float:
        return sum(
            float(
                core_algos.agg_loss(
                    losses[part], step.mask[part], "token-mean", batch_num_tokens=tokens
                )
            )
            for part in parts
        )

    assert over([slice(0, 8)]) == pytest.approx(over([slice(0, 1), slice(1, 5), slice(5, 8)]))


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_warm_up_begins_with_its_first_fraction(warmup: int) -> None:
    def rates(
        make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LambdaLR],
    ) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = make(optimizer)
        found = []
        for _ in range(6):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    as_set = rates(
        lambda optimizer: get_cosine_schedule_with_warmup(
            optimizer, warmup, 6, min_lr_ratio=1.0, zero_indexed_step=False
        )
    )
    assert as_set == pytest.approx(
        [min(1.0, (n + 1) / warmup) if warmup else 1.0 for n in range(6)]
    )
    if warmup:
        assert rates(lambda o: get_constant_schedule_with_warmup(o, warmup))[0] == 0
