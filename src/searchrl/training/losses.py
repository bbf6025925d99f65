"""Policy, value and KL losses, a value a trainable token.

Pure functions over flat ``A`` vectors (see ``batch``). None of them averages: the learner divides
the sums by one fixed denominator an optimizer step, so micro-batching changes nothing.
"""

from __future__ import annotations

from typing import Literal

import torch

KlEstimator = Literal["k1", "k2", "k3"]


def policy_losses(
    logprobs_A: torch.Tensor,
    old_logprobs_A: torch.Tensor,
    advantages_A: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> torch.Tensor:
    """PPO's clipped surrogate (arXiv 1707.06347, equation 7), to be minimised.

    Args:
        logprobs_A: under the policy being trained; carries the gradient.
        old_logprobs_A: under the policy that sampled.
        advantages_A: per token.
        clip_low: the ratio is clipped at ``1 - clip_low`` below.
        clip_high: and at ``1 + clip_high`` above (equal in PPO, larger in DAPO).
    """
    ratio_A = (logprobs_A - old_logprobs_A).exp()
    clipped_A = ratio_A.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(-advantages_A * ratio_A, -advantages_A * clipped_A)


def clipped_fraction(
    logprobs_A: torch.Tensor, old_logprobs_A: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """Number of tokens whose ratio lies outside the clipping range."""
    ratio_A = (logprobs_A - old_logprobs_A).exp()
    return ((ratio_A < 1 - clip_low) | (ratio_A > 1 + clip_high)).sum()


def value_losses(
    values_A: torch.Tensor, old_values_A: torch.Tensor, returns_A: torch.Tensor, clip: float
) -> torch.Tensor:
    """Half the squared error, the larger of it with and without value clipping."""
    clipped_A = old_values_A + (values_A - old_values_A).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_A - returns_A) ** 2, (clipped_A - returns_A) ** 2)


def kl_estimates(
    logprobs_A: torch.Tensor, reference_A: torch.Tensor, estimator: KlEstimator
) -> torch.Tensor:
    """Estimates of KL(policy || reference) from sampled tokens (Schulman, "Approximating KL").

    ``k1`` is unbiased and may be negative, ``k2`` is half its square, ``k3`` is unbiased and never
    negative. ``k3``'s exponent is clamped at 10, so that no token overflows; the originals clamp
    the estimate after ``exp``, when it may be infinite already.
    """
    difference_A = logprobs_A - reference_A
    if estimator == "k1":
        return difference_A
    if estimator == "k2":
        return 0.5 * difference_A**2
    inverse_A = (-difference_A).clamp(max=10.0)
    return inverse_A.exp() - inverse_A - 1
