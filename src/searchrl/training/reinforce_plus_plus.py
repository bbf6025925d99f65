"""REINFORCE++ (arXiv 2501.03262): no critic, and one normalisation over the whole batch.

Every token's return is the discounted sum of the token rewards from there on, and all returns of a
step are shifted and scaled together (``advantages.whiten``). The variant with a baseline first
takes each group's mean reward from its members.

Differs from common implementations: returns run over sampled tokens only, so no reward is lost on a
passage that follows the last output, and none is discounted by the length of what was read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def returns_to_go(rewards_T: torch.Tensor, gamma: float) -> torch.Tensor:
    """Discounted sum of the rewards from each trainable token on, ``[T]``."""
    returns_T = torch.zeros_like(rewards_T)
    carried = 0.0
    for step, reward in reversed(list(enumerate(rewards_T.tolist()))):
        carried = reward + gamma * carried
        returns_T[step] = carried
    return returns_T


def centred(rewards: Sequence[float]) -> list[float]:
    """Rewards of one group less their mean; exact zeros where all are equal."""
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]
