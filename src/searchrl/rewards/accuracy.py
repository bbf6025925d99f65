"""Generation accuracy (GenAcc, s3 section 3.2): the span check, or else the judge.

The judge is asked only where the span check fails, so it can add right answers that are worded
differently and never take one away.
"""

from __future__ import annotations

from collections.abc import Sequence

from searchrl.rewards.judge import Judge
from searchrl.rewards.text import answer_span


async def generation_accuracy(
    prediction: str | None, answers: Sequence[str], judge: Judge | None
) -> float:
    """Return 1.0 when the prediction gives a gold answer, else 0.0.

    Args:
        prediction: the answer; ``None``, no answer at all, is never right.
        answers: gold answers; any of them counts.
        judge: asked when no gold answer is a span of the prediction; ``None`` for spans alone.

    Raises:
        InfrastructureError: the judge's model failed after its retries.
    """
    if prediction is None:
        return 0.0
    if answer_span(prediction, answers):
        return 1.0
    return 0.0 if judge is None else float(await judge.check(prediction, answers))
