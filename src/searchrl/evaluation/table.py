"""From scored episodes to one summary a method, and its three written forms.

Episodes that infrastructure ended are counted and left out of every mean: a dead retriever is not
a wrong answer. Methods are compared with naive RAG on exactly the questions both finished.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from searchrl.errors import InputError
from searchrl.evaluation.statistics import (
    Interval,
    PairedDifference,
    bootstrap_interval,
    mean_interval,
    paired_difference,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

BASELINE = "rag"
"""The method that all others are compared with, when it is among them."""

COLUMNS = ("em", "f1", "gold_recall", "searches", "passages", "context_tokens", "seconds")
"""Columns beside accuracy, in the order they are written."""

_NO_VALUE = "\N{EN DASH}"
_FRACTIONS = frozenset({"accuracy", "em", "f1", "gold_recall"})
_HEADINGS = {
    "em": "EM %",
    "f1": "F1 %",
    "gold_recall": "Gold recall %",
    "searches": "Searches",
    "passages": "Passages",
    "context_tokens": "Context tokens",
    "seconds": "Seconds",
}


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
    baseline = methods.get(BASELINE, {})
    return [_summary(method, rows, baseline, seed) for method, rows in methods.items()]


def split_by_source(scores: Iterable[EpisodeScore]) -> dict[str, list[EpisodeScore]]:
    """The scores of each dataset, for one table a dataset."""
    sources: dict[str, list[EpisodeScore]] = {}
    for score in scores:
        sources.setdefault(score.source, []).append(score)
    return sources


def to_json(summaries: Sequence[MethodSummary]) -> dict[str, Any]:
    """The form of ``summary.json``; a mean of no value is ``null``."""
    return {"methods": {summary.method: _method_json(summary) for summary in summaries}}


def to_markdown(summaries: Sequence[MethodSummary]) -> str:
    """A GitHub-flavoured Markdown table; ends with a newline."""
    header, *rows = _cells(summaries)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    escaped = ([cell.replace("\\", "\\\\").replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def to_rich_table(summaries: Sequence[MethodSummary]) -> Table:
    """A table for terminals: a column a method, each interval under its mean."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, *rows = zip(*_cells(summaries), strict=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, heading in enumerate(header):
        # Text is taken literally: a method's name cannot hold markup.
        table.add_column(Text(heading), justify="right" if position else "left", no_wrap=True)
    for name, *cells in rows:
        table.add_row(Text(name), *(_two_lines(cell) for cell in cells))
    return table


def _summary(
    method: str,
    rows: dict[tuple[str, str], EpisodeScore],
    baseline: dict[tuple[str, str], EpisodeScore],
    seed: int,
) -> MethodSummary:
    finished = {key: score for key, score in rows.items() if not score.failed}

    def interval(column: str) -> Interval:
        values = [getattr(score, column) for score in finished.values()]
        estimate = mean_interval if column in _FRACTIONS else bootstrap_interval
        return estimate([value for value in values if value is not None], seed=seed)

    pairs = [
        (score.accuracy, baseline[key].accuracy)
        for key, score in finished.items()
        if key in baseline and not baseline[key].failed
    ]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    comparable = method != BASELINE and bool(pairs)
    return MethodSummary(
        method=method,
        accuracy=interval("accuracy"),
        **{column: interval(column) for column in COLUMNS},
        failed=len(rows) - len(finished),
        vs_rag=paired_difference(ours, theirs, seed=seed) if comparable else None,
    )


def _method_json(summary: MethodSummary) -> dict[str, Any]:
    versus = summary.vs_rag
    return {
        "accuracy": _number(summary.accuracy.mean),
        "ci95": _ends(summary.accuracy),
        "n": summary.accuracy.n,
        **{
            column: {
                "mean": _number(getattr(summary, column).mean),
                "ci95": _ends(getattr(summary, column)),
            }
            for column in COLUMNS
        },
        "failed": summary.failed,
        "vs_rag": None
        if versus is None
        else {
            "difference": _number(versus.difference),
            "ci95": _ends(versus),
            "p_value": versus.p_value,
            "n": versus.n,
        },
    }


def _ends(interval: Interval | PairedDifference) -> list[float | None]:
    return [_number(interval.low), _number(interval.high)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _cells(summaries: Sequence[MethodSummary]) -> list[list[str]]:
    """Heading row, then one row a method; a column without any value is left out."""
    shown = [c for c in COLUMNS if any(getattr(summary, c).n for summary in summaries)]
    versus = any(summary.vs_rag is not None for summary in summaries)
    header = ["Method", "n", "Accuracy %"]
    header += ["vs RAG, points", "p"] if versus else []
    rows = [header + [_HEADINGS[column] for column in shown] + ["Failed"]]
    for summary in summaries:
        accuracy = _mean(summary.accuracy, "accuracy")
        row = [_printable(summary.method), str(summary.accuracy.n), accuracy]
        row += _versus(summary.vs_rag) if versus else []
        row += [_mean(getattr(summary, column), column) for column in shown]
        rows.append([*row, str(summary.failed)])
    return rows


def _two_lines(cell: str) -> Text:
    """A mean over its interval, the interval short and dim."""
    from rich.text import Text

    mean, _, interval = cell.partition(" (")
    text = Text(mean)
    if interval:
        text.append("\n" + interval.rstrip(")").replace(" to ", "–"), style="dim")
    return text


def _printable(name: str) -> str:
    """A name fit for a terminal: control and escape characters become question marks."""
    return "".join(character if character.isprintable() else "?" for character in name)


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
    if column in _FRACTIONS:
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
