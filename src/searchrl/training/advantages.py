"""Advantages over trainable tokens.

GAE (arXiv 1506.02438) and group-relative advantages (GRPO, arXiv 2402.03300). Both see only the
tokens a model sampled: the recursion runs on the compressed sequence, so a long observation
between two outputs neither decays credit nor takes part in whitening, unlike in the original s3
and Search-R1. A group is a list of rewards made from one question, never index arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def generalized_advantages(
    rewards_T: torch.Tensor, values_T: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE of one episode.

    Args:
        rewards_T: reward received on each trainable token.
        values_T: value of the state in which each was sampled; the state after the last is 0.
        gamma: discount a trainable token.
        lam: GAE's lambda.

    Returns:
        Advantages and returns (advantage + value), each ``[T]``.
    """
    advantages_T = torch.zeros_like(rewards_T)
    following, carried = 0.0, 0.0
    rewards, values = rewards_T.tolist(), values_T.tolist()
    for step in range(len(rewards) - 1, -1, -1):
        delta = rewards[step] + gamma * following - values[step]
        carried = delta + gamma * lam * carried
        advantages_T[step] = carried
        following = values[step]
    return advantages_T, advantages_T + values_T


def whiten(values_A: torch.Tensor) -> torch.Tensor:
    """Shift to mean 0 and scale to variance 1; equal values, a single one too, become zeros."""
    if values_A.min() == values_A.max():
        # Said apart, because the mean of equal values may differ from them in the last place.
        return torch.zeros_like(values_A)
    centred_A = values_A - values_A.mean()
    return centred_A * torch.rsqrt(values_A.var(unbiased=True) + 1e-8)


def group_advantages(rewards: Sequence[float], scale_by_deviation: bool) -> list[float]:
    """Advantage of each member of one group: its reward less the group's mean.

    Args:
        rewards: of one question's episodes; two or more.
        scale_by_deviation: divide by the group's standard deviation (GRPO); off is Dr. GRPO
            (arXiv 2503.20783).

    Returns:
        One advantage a member. A group with equal rewards teaches nothing: all zeros.
    """
    if len(rewards) < 2:
        raise ValueError("a group needs at least two members to have a baseline")
    if len(set(rewards)) == 1:
        # Said apart, because the mean of equal rewards may differ from them in the last place.
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not scale_by_deviation:
        return centred
    deviation = (sum(value * value for value in centred) / (len(rewards) - 1)) ** 0.5
    return [value / (deviation + 1e-6) for value in centred]
