"""How sure a mean is, and whether two methods differ on the same questions.

Every interval is two-sided at 95 %. A list of 0/1 values gets Wilson's score interval, which stays
inside [0, 1] and has width even at 0 of n; any other list gets a percentile bootstrap, which keeps
the bounds of bounded values. Differences are always paired: the questions are resampled, so what
makes a question easy for both methods cancels out. Results depend on the values and the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
"""Bootstrap resamples, and random sign flips of the permutation test."""

_TAILS = (2.5, 97.5)
_Z = NormalDist().inv_cdf(0.975)
_BLOCK = 4_000_000
"""Values drawn at a time: bounds the memory of a large evaluation to some tens of megabytes."""
_EXACT_FLIPS = 13
"""Up to this many non-zero differences all ``2**n`` sign patterns are counted."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval; all three are NaN when there was no value.

    Attributes:
        mean: the arithmetic mean.
        low: lower end.
        high: upper end.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much one method beats another on the questions that both answered.

    Attributes:
        difference: mean of (method - baseline).
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: two-sided, of the hypothesis that the methods do not differ.
        n: number of pairs.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean and 95 % interval: Wilson for 0/1 values, percentile bootstrap for all others.

    Raises:
        ValueError: a value is not finite.
    """
    array = _finite(values)
    if array.size and _is_binary(array):
        return wilson_interval(int(array.sum()), array.size)
    return bootstrap_interval(values, seed=seed)


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean and 95 % interval by percentile bootstrap: for counts, which may all be 0 or 1.

    Raises:
        ValueError: a value is not finite.
    """
    array = _finite(values)
    if not array.size:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(array.mean())
    low, high = _bootstrap_ends(array, seed)
    # A constant list may round apart from its own mean.
    return Interval(mean, min(low, mean), max(high, mean), array.size)


def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927), without continuity correction.

    Raises:
        ValueError: ``n`` is below 1, or ``successes`` is not between 0 and ``n``.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a proportion")
    mean = successes / n
    square = _Z * _Z
    centre = (mean + square / (2 * n)) / (1 + square / n)
    half = _Z * math.sqrt(mean * (1 - mean) / n + square / (4 * n * n)) / (1 + square / n)
    return Interval(mean, max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)), n)


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], *, seed: int = 0
) -> PairedDifference:
    """Compare two methods on the same questions, given in the same order.

    The interval is a paired percentile bootstrap. The p-value is McNemar's exact test when every
    value is 0 or 1, else a sign-flip permutation test.

    Raises:
        ValueError: the lists differ in length, are empty, or hold a value that is not finite.
    """
    ours, theirs = _finite(values), _finite(baseline)
    if ours.shape != theirs.shape or not ours.size:
        raise ValueError(f"cannot pair {ours.size} values with {theirs.size}")
    differences = ours - theirs
    low, high = _bootstrap_ends(differences, seed)
    mean = float(differences.mean())
    if _is_binary(ours) and _is_binary(theirs):
        p_value = mcnemar_exact(int((differences > 0).sum()), int((differences < 0).sum()))
    else:
        p_value = _sign_flip(differences, seed)
    return PairedDifference(mean, min(low, mean), max(high, mean), p_value, ours.size)


def macro_interval(parts: Sequence[Interval]) -> Interval:
    """The mean of independent means, each counting the same, with its 95 % interval.

    The interval is put together from those of the parts by the square-and-add method (MOVER: Zou
    and Donner 2008), so it stays in their range and has width even where every part is at 0.

    Raises:
        ValueError: there is no part.
    """
    mean, low, high = _macro([(part.mean, part.low, part.high) for part in parts])
    known = all(part.n for part in parts)
    return Interval(mean, low, high, sum(part.n for part in parts) if known else 0)


def macro_difference(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, seed: int = 0
) -> PairedDifference:
    """Compare two methods over several datasets, each counting the same.

    The interval is put together from the datasets' paired bootstraps as in ``macro_interval``; the
    p-value is a sign-flip permutation test of the mean of the datasets' mean differences.

    Args:
        pairs: of each dataset the method's values and the baseline's, on the same questions.
        seed: fixes the draws.

    Raises:
        ValueError: there is no dataset, or as ``paired_difference``.
    """
    if len(pairs) == 1:
        return paired_difference(*pairs[0], seed=seed)
    parts = [paired_difference(*pair, seed=seed + place) for place, pair in enumerate(pairs)]
    mean, low, high = _macro([(part.difference, part.low, part.high) for part in parts])
    # Weighted, so that the sum of all differences is the mean of the datasets' means.
    weighted = [
        (np.asarray(ours, dtype=np.float64) - np.asarray(theirs)) / (len(ours) * len(pairs))
        for ours, theirs in pairs
    ]
    p_value = _sign_flip(np.concatenate(weighted), seed)
    return PairedDifference(mean, low, high, p_value, sum(part.n for part in parts))


def _macro(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    if not parts:
        raise ValueError("nothing to average over")
    count = len(parts)
    mean = math.fsum(part[0] for part in parts) / count
    below = math.hypot(*(part[0] - part[1] for part in parts)) / count
    above = math.hypot(*(part[2] - part[0] for part in parts)) / count
    return mean, mean - below, mean + above


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided exact McNemar p-value: a fair coin tossed once for each pair that disagrees.

    Counted in whole numbers, so it has no rounding before the final division.
    """
    discordant = wins + losses
    ways, tail = 1, 0
    for count in range(min(wins, losses) + 1):
        tail += ways
        ways = ways * (discordant - count) // (count + 1)
    return min(1.0, float(2 * tail / 2**discordant))


def _finite(values: Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a value is not a finite number")
    return array


def _is_binary(array: Floats) -> bool:
    return bool(((array == 0) | (array == 1)).all())


def _bootstrap_ends(array: Floats, seed: int) -> tuple[float, float]:
    low, high = np.percentile(_resampled_means(array, seed), _TAILS)
    return float(low), float(high)


def _resampled_means(array: Floats, seed: int) -> Floats:
    """Means of ``RESAMPLES`` draws with replacement; shape ``(RESAMPLES,)``.

    Values that repeat often are drawn as counts of each distinct value: the same distribution at a
    cost that does not grow with the number of questions.
    """
    generator = np.random.default_rng(seed)
    distinct, counts = np.unique(array, return_counts=True)
    if distinct.size * 8 <= array.size:
        drawn = generator.multinomial(array.size, counts / array.size, size=RESAMPLES)
        return np.asarray(drawn @ distinct / array.size, dtype=np.float64)
    return np.concatenate(
        [
            array[generator.integers(0, array.size, size=(rows, array.size), dtype=np.int32)].mean(
                axis=1
            )
            for rows in _blocks(array.size)
        ]
    )


def _blocks(width: int) -> Iterator[int]:
    """Row counts that sum to ``RESAMPLES``, each block at most ``_BLOCK`` values."""
    step = max(1, _BLOCK // width)
    for start in range(0, RESAMPLES, step):
        yield min(step, RESAMPLES - start)


def _sign_flip(differences: Floats, seed: int) -> float:
    """Two-sided p-value of the sum of differences when each sign is as likely as its opposite."""
    differences = differences[differences != 0]
    if not differences.size:
        return 1.0
    # Sums that are equal on paper may differ in the last bits.
    observed = abs(float(differences.sum())) - 1e-9 * float(np.abs(differences).sum())
    if differences.size <= _EXACT_FLIPS:
        patterns = np.arange(2**differences.size)[:, None] >> np.arange(differences.size)
        sums = (2 * (patterns & 1) - 1) @ differences
        return float((np.abs(sums) >= observed).mean())
    generator = np.random.default_rng(seed)
    extreme = 0
    for rows in _blocks(differences.size):
        signs = generator.integers(0, 2, size=(rows, differences.size), dtype=np.int8)
        sums = (2.0 * signs - 1.0) @ differences
        extreme += int((np.abs(sums) >= observed).sum())
    # The observed pattern is one of the possible ones, so p is never 0.
    return (1 + extreme) / (1 + RESAMPLES)
