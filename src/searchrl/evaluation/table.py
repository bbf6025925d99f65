"""From scored episodes to one summary a method.

Episodes that infrastructure ended are counted and left out of every mean: a dead retriever is not
a wrong answer. Methods are compared with naive RAG on exactly the questions both finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from searchrl.errors import InputError
from searchrl.evaluation.statistics import (
    Interval,
    PairedDifference,
    bootstrap_interval,
    mean_interval,
    paired_difference,
)

BASELINE = "rag"
"""The method that all others are compared with, when it is among them."""

COLUMNS = ("em", "f1", "gold_recall", "searches", "passages", "context_tokens", "seconds")
"""Columns beside accuracy, in the order they are written."""

FRACTIONS = frozenset({"accuracy", "em", "f1", "gold_recall"})
"""Columns whose values lie between 0 and 1."""


@dataclass(frozen=True, slots=True)
class EpisodeScore:
    """What one method made of one question.

    Attributes:
        question_id: unique within ``source``.
        method: the name of the agent.
        source: the dataset the question comes from.
        accuracy: 1 when the answer counts as right, 0 when not.
        em: exact match, 0 or 1.
        f1: token F1, between 0 and 1.
        gold_recall: share of the gold passages that were in the final context; ``None`` when the
            dataset does not name any.
        searches: searches the model asked for.
        passages: passages in the final context.
        context_tokens: tokens of the final context.
        seconds: wall time of the episode.
        failed: infrastructure ended the episode; its other values are not read.
    """

    question_id: str
    method: str
    source: str
    accuracy: float
    em: float
    f1: float
    gold_recall: float | None
    searches: int
    passages: int
    context_tokens: int
    seconds: float
    failed: bool = False


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method over all its questions; each interval is a mean with its 95 % interval."""

    method: str
    accuracy: Interval
    em: Interval
    f1: Interval
    gold_recall: Interval
    searches: Interval
    passages: Interval
    context_tokens: Interval
    seconds: Interval
    failed: int
    vs_rag: PairedDifference | None


def summarise(scores: Iterable[EpisodeScore], *, seed: int = 0) -> list[MethodSummary]:
    """Summarise each method, in the order in which methods first appear.

    Raises:
        InputError: a method has the same question twice.
    """
    methods = by_method(scores)
    baseline = methods.get(BASELINE, {})
    return [_summary(method, rows, baseline, seed) for method, rows in methods.items()]


Rows = Mapping[tuple[str, str], EpisodeScore]
"""The scores of one method by source and id of the question."""


def by_method(scores: Iterable[EpisodeScore]) -> dict[str, Rows]:
    """The scores of each method, in the order in which methods first appear.

    Raises:
        InputError: a method has the same question twice.
    """
    methods: dict[str, dict[tuple[str, str], EpisodeScore]] = {}
    for score in scores:
        rows = methods.setdefault(score.method, {})
        key = (score.source, score.question_id)
        if key in rows:
            raise InputError(
                f"method {score.method!r} has question {score.question_id!r} of "
                f"{score.source!r} twice; give one score a question"
            )
        rows[key] = score
    return dict(methods)


def paired_accuracies(rows: Rows, baseline: Rows) -> tuple[list[float], list[float]]:
    """Accuracies of a method and of the baseline on the questions that both finished."""
    pairs = [
        (score.accuracy, baseline[key].accuracy)
        for key, score in rows.items()
        if not score.failed and key in baseline and not baseline[key].failed
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _summary(method: str, rows: Rows, baseline: Rows, seed: int) -> MethodSummary:
    finished = [score for score in rows.values() if not score.failed]

    def interval(column: str) -> Interval:
        values = [getattr(score, column) for score in finished]
        estimate = mean_interval if column in FRACTIONS else bootstrap_interval
        return estimate([value for value in values if value is not None], seed=seed)

    ours, theirs = paired_accuracies(rows, baseline)
    comparable = method != BASELINE and bool(ours)
    return MethodSummary(
        method=method,
        accuracy=interval("accuracy"),
        **{column: interval(column) for column in COLUMNS},
        failed=len(rows) - len(finished),
        vs_rag=paired_difference(ours, theirs, seed=seed) if comparable else None,
    )
