"""Several datasets in one evaluation: a table each, and their macro average.

The average is the mean of the datasets' means, each dataset counting the same however many
questions it has, as in the tables of s3 and Search-R1. It is taken where every dataset has a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from searchrl.evaluation.statistics import PairedDifference, macro_difference, macro_interval
from searchrl.evaluation.table import (
    BASELINE,
    COLUMNS,
    EpisodeScore,
    MethodSummary,
    Rows,
    by_method,
    paired_accuracies,
    summarise,
)

ALL = "all"
"""What the one dataset is called."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods on one or several datasets.

    Attributes:
        datasets: the table of each, in the order in which they first appear.
        average: the macro average over them; the one dataset's own table where there is one.
    """

    datasets: Mapping[str, Sequence[MethodSummary]]
    average: Sequence[MethodSummary]


def compare_scores(scores: Iterable[EpisodeScore], several: bool, *, seed: int = 0) -> Comparison:
    """The tables of some scores.

    Args:
        scores: of every method.
        several: every source is a dataset; or else all are one.
        seed: fixes the draws of intervals and tests.

    Raises:
        InputError: a method has the same question twice.
    """
    if not several:
        table = summarise(scores, seed=seed)
        return Comparison({ALL: table}, table)
    sources: dict[str, list[EpisodeScore]] = {}
    for score in scores:
        sources.setdefault(score.source, []).append(score)
    tables = {source: summarise(rows, seed=seed) for source, rows in sources.items()}
    if len(tables) == 1:
        return Comparison(tables, next(iter(tables.values())))
    rows = [by_method(part) for part in sources.values()]
    return Comparison(tables, _average(list(tables.values()), rows, seed))


def _average(
    tables: Sequence[Sequence[MethodSummary]], scores: Sequence[Mapping[str, Rows]], seed: int
) -> list[MethodSummary]:
    summaries = [{summary.method: summary for summary in table} for table in tables]
    methods = dict.fromkeys(method for table in summaries for method in table)
    everywhere = [m for m in methods if all(m in table for table in summaries)]
    return [
        _averaged([table[method] for table in summaries], _versus(method, scores, seed))
        for method in everywhere
    ]


def _averaged(parts: Sequence[MethodSummary], versus: PairedDifference | None) -> MethodSummary:
    columns = {
        column: macro_interval([getattr(part, column) for part in parts])
        for column in ("accuracy", *COLUMNS)
    }
    failed = sum(part.failed for part in parts)
    return MethodSummary(parts[0].method, failed=failed, vs_rag=versus, **columns)


def _versus(
    method: str, scores: Sequence[Mapping[str, Rows]], seed: int
) -> PairedDifference | None:
    if method == BASELINE or not all(BASELINE in methods for methods in scores):
        return None
    pairs = [paired_accuracies(methods[method], methods[BASELINE]) for methods in scores]
    if not all(ours for ours, _ in pairs):
        return None
    return macro_difference(pairs, seed=seed)
