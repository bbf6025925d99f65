"""REINFORCE leave-one-out, RLOO (arXiv 2402.14740): a baseline that is not biased by its member.

An episode's baseline is the mean reward of the others of its group, so it does not depend on the
episode itself. Equal to GRPO without the deviation up to the factor n / (n - 1).

Differs from the paper: the gradient is that of PPO's clipped surrogate, which is REINFORCE's as
long as the policy is the one that sampled.
"""

from __future__ import annotations

from collections.abc import Sequence


def leave_one_out_advantages(rewards: Sequence[float]) -> list[float]:
    """Advantage of each member of one group: its reward less the mean of the others'.

    Args:
        rewards: of one question's episodes; two or more.

    Returns:
        One advantage a member. A group with equal rewards teaches nothing: all zeros.
    """
    if len(rewards) < 2:
        raise ValueError("a group needs at least two members to leave one out")
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    total, others = sum(rewards), len(rewards) - 1
    return [reward - (total - reward) / others for reward in rewards]
