"""Watches a run for the ways in which reinforcement learning goes wrong.

Functions of the metrics of the steps so far, so a resumed run judges as if it had never
stopped. Every guard is always on, and its verdict is itself a metric, ``guards/<name>``: 0 when all
is well, 1 for a warning, 2 for a stop. What each reads, and its thresholds, stand in
``GuardOptions`` and in docs/training.md.

A metric that is missing, or not finite, is no evidence for or against anything but the gradients,
which have a count of their own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from searchrl.errors import UnstableError
from searchrl.training.options import GuardOptions

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""The metrics of one step; a number that was not finite may be ``None``."""


class Level(IntEnum):
    """How bad it is."""

    FINE = 0
    WARNING = 1
    STOP = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one guard says of a run.

    Attributes:
        guard: its name.
        level: how bad it is.
        message: one line with the numbers and what to do; empty when all is well.
    """

    guard: str
    level: Level = Level.FINE
    message: str = ""


def judge(history: Sequence[Row], options: GuardOptions) -> list[Verdict]:
    """The verdict of every guard on a run whose last step is the last row.

    Args:
        history: the metrics of all steps, oldest first; at least one.
        options: the thresholds.
    """
    shares = (
        ("all_equal_groups", "groups/all_equal", options.all_equal_groups, "questions are too "
         "easy or too hard to learn from; choose others or raise rollout.group_size"),
        ("truncated_episodes", "episodes/truncated", options.truncated_episodes,
         "raise the agent's budgets, or set learning.mask_truncated"),
        ("invalid_turns", "episodes/invalid_turns", options.invalid_turns,
         "the searcher leaves its protocol; add a KL term or lower the learning rate"),
        ("failed_episodes", "episodes/failed_share", options.failed_episodes,
         "a service fails often; look at the errors in episodes/"),
    )  # fmt: skip
    return [
        _gradients(history, options),
        _mismatch(history, options),
        _entropy(history, options),
        _reward(history, options),
        *(_share(history, options, *share) for share in shares),
    ]


def guard_metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The verdicts as metrics."""
    return {f"guards/{verdict.guard}": float(verdict.level) for verdict in verdicts}


def heed(verdicts: Sequence[Verdict], history: Sequence[Row], step: int) -> None:
    """Log what is newly wrong; end the run where a guard says so.

    Args:
        verdicts: on the step.
        history: the metrics of all steps, this one's last, those of the guards among them.
        step: counted from 1.

    Raises:
        UnstableError: a guard stops the run.
    """
    before = history[-2] if len(history) > 1 else {}
    for verdict in verdicts:
        if verdict.level is Level.STOP:
            raise UnstableError(f"step {step}: {verdict.message}")
        if verdict.level is Level.WARNING and not before.get(f"guards/{verdict.guard}"):
            logger.warning("step %d: %s", step, verdict.message)


def _gradients(history: Sequence[Row], options: GuardOptions) -> Verdict:
    """Updates that were skipped, in a row of steps that each skipped some."""
    skipped = 0.0
    for row in reversed(history):
        count = _number(row, "skipped_updates")
        if not count:
            break
        skipped += count
    if not skipped:
        return Verdict("gradients")
    text = (
        f"{skipped:.0f} updates in a row were skipped because a gradient was not finite; "
        "lower the learning rate or look at the last episodes"
    )
    stop = skipped >= options.nonfinite_updates
    return Verdict("gradients", Level.STOP if stop else Level.WARNING, text)


def _mismatch(history: Sequence[Row], options: GuardOptions) -> Verdict:
    """Whether the update still learns from the policy that the rollouts were sampled from."""
    name, recent = "mismatch", _last(history, "mismatch_kl", options.patience)
    if not recent:
        return Verdict(name)
    text = (
        f"rollouts and trainer differ by {recent[-1]:.3g} nats a token; sample and train in the "
        "same number form, or set learning.importance_cap"
    )
    if len(recent) == options.patience and min(recent) > options.mismatch_stop:
        return Verdict(name, Level.STOP, text)
    if recent[-1] > options.mismatch_warning:
        return Verdict(name, Level.WARNING, text)
    return Verdict(name)


def _entropy(history: Sequence[Row], options: GuardOptions) -> Verdict:
    """Whether sampling has become nearly deterministic, measured by the run's own beginning."""
    values = _numbers(history, "entropy")
    first, recent = values[: options.patience], values[-options.patience :]
    if len(values) < 2 * options.patience or _mean(first) <= 0:
        return Verdict("entropy")
    left = _mean(recent) / _mean(first)
    if left >= options.entropy_left:
        return Verdict("entropy")
    return Verdict(
        "entropy",
        Level.WARNING,
        f"entropy has fallen to {left:.1%} of what the run began with; raise "
        "learning.clip_high or learning.entropy_coefficient",
    )


def _reward(history: Sequence[Row], options: GuardOptions) -> Verdict:
    """Whether the run has lost much of the best it had reached."""
    window, values = options.reward_window, _numbers(history, "reward/mean")
    means = [_mean(values[end - window : end]) for end in range(window, len(values) + 1)]
    if not means:
        return Verdict("reward")
    gained = max(max(means) - means[0], options.reward_scale)
    lost = max(means) - means[-1]
    if lost <= options.reward_lost * gained:
        return Verdict("reward")
    return Verdict(
        "reward",
        Level.WARNING,
        f"mean reward over {window} steps fell from {max(means):.3f} to {means[-1]:.3f}; "
        "checkpoints/best holds the better searcher; lower the learning rate or add a KL term",
    )


def _share(
    history: Sequence[Row],
    options: GuardOptions,
    name: str,
    metric: str,
    limit: float,
    advice: str,
) -> Verdict:
    """Whether a share has been too large for some steps on end."""
    recent = _last(history, metric, options.patience)
    if len(recent) < options.patience or min(recent) <= limit:
        return Verdict(name)
    return Verdict(name, Level.WARNING, f"{metric} is {recent[-1]:.2f}; {advice}")


def _last(history: Sequence[Row], metric: str, count: int) -> list[float]:
    """A metric in the last steps, those that have it."""
    return _numbers(history[-count:], metric)


def _numbers(history: Sequence[Row], metric: str) -> list[float]:
    found = (_number(row, metric) for row in history)
    return [value for value in found if value is not None]


def _number(row: Row, metric: str) -> float | None:
    value = row.get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
