"""A comparison as rows of text: a heading row, then one row a method.

Names come from outside; what could act on a terminal is taken out of them here, what means
something to Markdown or LaTeX where it is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from searchrl.evaluation.datasets import Comparison
from searchrl.evaluation.statistics import Interval, PairedDifference
from searchrl.evaluation.table import COLUMNS, FRACTIONS, MethodSummary

AVERAGE = "Macro average"
_NO_VALUE = "\N{EN DASH}"
_HEADINGS = {
    "em": "EM %",
    "f1": "F1 %",
    "gold_recall": "Gold recall %",
    "searches": "Searches",
    "passages": "Passages",
    "context_tokens": "Context tokens",
    "seconds": "Seconds",
}

Grid = list[list[str]]


def full(summaries: Sequence[MethodSummary]) -> Grid:
    """Every column; one without any value is left out."""
    shown = [c for c in COLUMNS if any(getattr(summary, c).n for summary in summaries)]
    versus = any(summary.vs_rag is not None for summary in summaries)
    header = ["Method", "n", "Accuracy %", *(_versus_headings() if versus else [])]
    rows = [header + [_HEADINGS[column] for column in shown] + ["Failed"]]
    for summary in summaries:
        accuracy = _mean(summary.accuracy, "accuracy")
        row = [printable(summary.method), str(summary.accuracy.n), accuracy]
        row += _versus(summary.vs_rag) if versus else []
        row += [_mean(getattr(summary, column), column) for column in shown]
        rows.append([*row, str(summary.failed)])
    return rows


def overview(comparison: Comparison) -> Grid:
    """The accuracy on every dataset and on average, and how the average compares with RAG."""
    tables = list(comparison.datasets.values())
    sizes = [max(summary.accuracy.n for summary in table) for table in tables]
    names = [
        f"{printable(name)}, n {size:,}"
        for name, size in zip(comparison.datasets, sizes, strict=True)
    ]
    versus = any(summary.vs_rag is not None for summary in comparison.average)
    rows = [["Accuracy %", *names, AVERAGE, *(_versus_headings() if versus else [])]]
    for summary in comparison.average:
        parts = [next(s for s in table if s.method == summary.method) for table in tables]
        row = [_mean(part.accuracy, "accuracy") for part in (*parts, summary)]
        rows.append([printable(summary.method), *row, *(_versus(summary.vs_rag) if versus else [])])
    return rows


def printable(name: str) -> str:
    """A name fit for a terminal: control and escape characters become question marks."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _versus_headings() -> list[str]:
    return ["vs RAG, points", "p"]


def _versus(versus: PairedDifference | None) -> list[str]:
    if versus is None:
        return ["", ""]
    points = [f"{100 * v:+.1f}" for v in (versus.difference, versus.low, versus.high)]
    p_value = "< 0.001" if versus.p_value < 0.001 else f"{versus.p_value:.3f}"
    return [f"{points[0]} ({points[1]} to {points[2]})", p_value]


def _mean(interval: Interval, column: str) -> str:
    """A mean with its 95 % interval."""
    if not interval.n:
        return _NO_VALUE
    ends = (interval.mean, interval.low, interval.high)
    mean, low, high = (_written(value, column) for value in ends)
    return f"{mean} ({low} to {high})"


def _written(value: float, column: str) -> str:
    if column in FRACTIONS:
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
