"""The written forms of a comparison: JSON and CSV for programs, Markdown, LaTeX and a terminal.

JSON has the form of ``summary.json``: ``methods`` is the one dataset's table, or the macro average
where there are several, whose own tables stand under ``datasets`` then.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from searchrl.evaluation import cells
from searchrl.evaluation.cells import AVERAGE, Grid
from searchrl.evaluation.datasets import Comparison
from searchrl.evaluation.statistics import Interval, PairedDifference
from searchrl.evaluation.table import COLUMNS, MethodSummary

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_ABOUT_AVERAGE = (
    f"{AVERAGE}: the mean of the datasets' means, each counting the same. Brackets hold 95 % "
    "intervals; p is of a paired test against RAG on the same questions."
)
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{EN DASH}": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The form of ``summary.json``; a mean of no value is ``null``."""
    table = _methods_json(comparison.average)
    if len(comparison.datasets) == 1:
        return table
    tables = {name: _methods_json(rows) for name, rows in comparison.datasets.items()}
    return {**table, "average": "macro", "datasets": tables}


def to_csv(comparison: Comparison) -> str:
    """One row a dataset and method, the averages last; a mean of no value is empty."""
    tables = dict(comparison.datasets)
    if len(tables) > 1:
        tables[AVERAGE.lower()] = comparison.average
    rows = [
        {"dataset": name, "method": summary.method, **_flat(summary)}
        for name, table in tables.items()
        for summary in table
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """GitHub-flavoured Markdown: one table, or an overview and a table a dataset."""
    if len(comparison.datasets) == 1:
        return _markdown(cells.full(comparison.average))
    parts = [f"{_markdown(cells.overview(comparison))}\n{_ABOUT_AVERAGE}\n"]
    for name, table in (*comparison.datasets.items(), (AVERAGE, comparison.average)):
        parts.append(f"## {cells.printable(name)}\n\n{_markdown(cells.full(table))}")
    return "\n".join(parts)


def to_latex(comparison: Comparison) -> str:
    """A ``tabular`` with the rules of booktabs: the one dataset's columns, or the overview."""
    several = len(comparison.datasets) > 1
    grid = cells.overview(comparison) if several else cells.full(comparison.average)
    header, *rows = (" & ".join(_latex(cell) for cell in line) + r" \\" for line in grid)
    about = f"% {_ABOUT_AVERAGE}\n" if several else ""
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(grid[0]) - 1)}}}",
        r"\toprule",
        header,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return f"% needs \\usepackage{{booktabs}}\n{about}" + "\n".join(lines) + "\n"


def to_rich_table(comparison: Comparison) -> Table:
    """A table for terminals, the overview of several datasets; intervals stand under their mean."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if len(comparison.datasets) > 1:
        grid = cells.overview(comparison)
        header, *rows = grid
    else:
        header, *rows = (list(line) for line in zip(*cells.full(comparison.average), strict=True))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, heading in enumerate(header):
        # Text is taken literally: a method's name cannot hold markup.
        table.add_column(Text(heading), justify="right" if position else "left", no_wrap=True)
    for name, *line in rows:
        table.add_row(Text(name), *(_two_lines(cell) for cell in line))
    return table


def _methods_json(summaries: Sequence[MethodSummary]) -> dict[str, Any]:
    return {"methods": {summary.method: _method_json(summary) for summary in summaries}}


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


def _flat(summary: MethodSummary) -> dict[str, Any]:
    row: dict[str, Any] = {"n": summary.accuracy.n, "failed": summary.failed}
    for column in ("accuracy", *COLUMNS):
        interval: Interval = getattr(summary, column)
        row[column] = _number(interval.mean)
        row[f"{column}_low"], row[f"{column}_high"] = _ends(interval)
    versus = summary.vs_rag
    row["vs_rag"] = None if versus is None else _number(versus.difference)
    row["vs_rag_low"], row["vs_rag_high"] = (None, None) if versus is None else _ends(versus)
    row["vs_rag_p"] = None if versus is None else versus.p_value
    return row


def _ends(interval: Interval | PairedDifference) -> list[float | None]:
    return [_number(interval.low), _number(interval.high)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _markdown(grid: Grid) -> str:
    header, *rows = grid
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    escaped = ([cell.replace("\\", "\\\\").replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _latex(cell: str) -> str:
    return "".join(_TEX.get(character, character) for character in cell)


def _two_lines(cell: str) -> Text:
    """A mean over its interval, the interval short and dim."""
    from rich.text import Text

    mean, _, interval = cell.partition(" (")
    text = Text(mean)
    if interval:
        text.append("\n" + interval.rstrip(")").replace(" to ", "–"), style="dim")
    return text
