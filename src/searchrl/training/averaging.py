"""How the tokens of an optimizer step are averaged into one loss.

``token``: every token counts the same (DAPO, arXiv 2503.14476). ``episode``: every episode counts
the same, its tokens share its weight (GRPO, arXiv 2402.03300). ``constant``: a token counts one
over a fixed number of tokens an episode, so that neither its own episode's length nor the others'
changes its weight (Dr. GRPO, arXiv 2503.20783).

The weights are set for the whole optimizer step before the first micro-batch, so how a step is cut
changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Average = Literal["token", "episode", "constant"]


def token_weights(lengths: Sequence[int], average: Average, constant: int | None) -> list[float]:
    """Weight of one token of each episode of an optimizer step.

    Args:
        lengths: trainable tokens of each episode; 0 for one that is left out of the loss.
        average: the rule.
        constant: tokens an episode is taken to have, for ``constant``.

    Raises:
        ValueError: the rule is ``constant`` and there is none.
    """
    counted = sum(length > 0 for length in lengths)
    if average == "token":
        share = 1 / max(1, sum(lengths))
        return [share if length else 0.0 for length in lengths]
    if average == "episode":
        return [1 / (counted * length) if length else 0.0 for length in lengths]
    if constant is None:
        raise ValueError("the average over a constant needs the constant")
    return [1 / (counted * constant) if length else 0.0 for length in lengths]
