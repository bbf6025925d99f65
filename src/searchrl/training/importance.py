"""Correction for a sampler that is not quite the policy being trained.

A rollout engine with other kernels or another number form samples from a slightly different
distribution than the trainer computes. Truncated importance sampling (Ionides 2008, "Truncated
importance sampling"; on language models in "Your efficient RL framework secretly brings you
off-policy RL training", 2025) weights each token's policy loss by the ratio of the two
probabilities, and cuts the weight at a cap, which bounds the variance at the price of some bias.
"""

from __future__ import annotations

import torch


def truncated_weights(
    logprobs_A: torch.Tensor, sampled_logprobs_A: torch.Tensor, cap: float
) -> torch.Tensor:
    """Weight of each trainable token: ``min(trainer probability / rollout probability, cap)``.

    Args:
        logprobs_A: under the weights that sampled, as the trainer computes them.
        sampled_logprobs_A: of the same tokens, as the rollout noted them.
        cap: the largest weight.
    """
    # The difference is cut before exp, which therefore cannot overflow.
    limit = torch.tensor(cap, dtype=logprobs_A.dtype, device=logprobs_A.device).log()
    return (logprobs_A - sampled_logprobs_A).clamp(max=limit).exp()
