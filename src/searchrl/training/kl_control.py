"""The adaptive KL controller (arXiv 1909.08593, section 2.2): hold the divergence at a target.

The coefficient grows while the policy is further from its reference than the target, and shrinks
while it is nearer, by a factor proportional to the relative error, which is cut at a fifth.
"""

from __future__ import annotations

_LARGEST_ERROR = 0.2


def next_coefficient(
    coefficient: float, divergence: float, target: float, episodes: int, horizon: int
) -> float:
    """The KL coefficient of the next step.

    Args:
        coefficient: of this step.
        divergence: the KL divergence to the reference that this step saw, in nats a token.
        target: what it should be.
        episodes: made in this step.
        horizon: episodes over which a relative error of 1 would change the coefficient by its own
            size, were it not cut.
    """
    error = max(-_LARGEST_ERROR, min(_LARGEST_ERROR, divergence / target - 1))
    # Never below zero, however many episodes a step has.
    return coefficient * max(0.0, 1 + error * episodes / horizon)
