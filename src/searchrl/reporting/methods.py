"""The ``summary.json`` form read into rows, and the sentence that says the result.

Only ``accuracy``, ``ci95`` and ``n`` are needed of a method; every other column may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from searchrl.errors import InputError
from searchrl.reporting.numbers import (
    NO_VALUE,
    headline_percent,
    number,
    p_value,
    percent,
    points,
)
from searchrl.reporting.svg import Bar

AXIS_LABEL = "Accuracy, with 95 % intervals"

_LABELS = {"rag": "naive RAG", "direct": "no retrieval", "oracle": "gold passages (oracle)"}
_UNTRAINED = "-untrained"
_BASELINES = frozenset(
    {
        *("direct", "cot", "rag", "oracle", "ircot", "ircot_published"),
        *("search_o1", "search_o1_ret", "search_o1_published"),
    }
)
"""Methods in which nothing is trained."""
_COLUMNS = (
    ("em", "Exact match, %", True),
    ("f1", "F1, %", True),
    ("gold_recall", "Gold recall, %", True),
    ("searches", "Searches", False),
    ("passages", "Passages", False),
    ("context_tokens", "Context tokens", False),
    ("seconds", "Seconds", False),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the table and, in small print, lines about it."""

    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a summary; ``accuracy`` and its ends are ``None`` when nothing was scored."""

    name: str
    label: str
    accuracy: float | None
    low: float | None
    high: float | None
    n: int
    row: Mapping[str, Any]


def read_methods(summary: Mapping[str, Any]) -> list[Method]:
    """Read the methods of a summary, in its order.

    Raises:
        InputError: the summary is not in the form of ``summary.json``.
    """
    rows = summary.get("methods")
    if not isinstance(rows, Mapping):
        raise InputError('summary: field "methods" is missing; give the form of summary.json')
    return [_method(str(name), row, rows) for name, row in rows.items()]


def read_datasets(summary: Mapping[str, Any]) -> dict[str, list[Method]]:
    """Read the methods of each dataset; none where a summary is of one dataset alone.

    Raises:
        InputError: the summary is not in the form of ``summary.json``.
    """
    datasets = summary.get("datasets", {})
    if not isinstance(datasets, Mapping):
        raise InputError('summary: "datasets" is no table; give the form of summary.json')
    for name, table in datasets.items():
        if not isinstance(table, Mapping):
            raise InputError(f"summary: dataset {name!r} is no table of methods")
    return {str(name): read_methods(table) for name, table in datasets.items()}


def to_bars(methods: Sequence[Method]) -> list[Bar]:
    """Bars for the methods that have an accuracy, the main one emphasised."""
    main = main_method(methods)
    return [
        Bar(method.label, method.accuracy, method.low, method.high, method is main)
        for method in methods
        if method.accuracy is not None and method.low is not None and method.high is not None
    ]


def main_method(methods: Sequence[Method]) -> Method | None:
    """The method the result is about: a trained one, else the best that is not a baseline."""
    scored = [method for method in methods if method.accuracy is not None]
    names = {method.name for method in methods}
    trained = [method for method in scored if method.name + _UNTRAINED in names]
    proposed = [method for method in scored if method.name not in _BASELINES]
    candidates = trained or proposed or [m for m in scored if m.name != "oracle"] or scored
    return max(candidates, key=lambda method: method.accuracy or 0.0, default=None)


def headline(methods: Sequence[Method]) -> str | None:
    """One sentence with the main method's accuracy and naive RAG's; ``None`` without a result."""
    main = main_method(methods)
    if main is None or main.accuracy is None:
        return None
    sentence = f"{main.label} answers {headline_percent(main.accuracy)} of {main.n:,} questions"
    if main.name + _UNTRAINED in {method.name for method in methods}:
        sentence = sentence.removesuffix("questions") + "held-out questions"
    rag = next((method for method in methods if method.name == "rag"), None)
    if rag is None or rag is main or rag.accuracy is None:
        return sentence + "."
    return f"{sentence}; naive RAG {headline_percent(rag.accuracy)}."


def comparison(methods: Sequence[Method]) -> str | None:
    """The main method's paired gain over naive RAG in one sentence, when it was measured."""
    main = main_method(methods)
    versus = main.row.get("vs_rag") if main is not None else None
    if not versus:
        return None
    low, high = versus["ci95"]
    return (
        f"{points(versus['difference'])} points over naive RAG on the same questions "
        f"(95 % interval {points(low)} to {points(high)}, {p_value(versus['p_value'])})."
    )


def table(methods: Sequence[Method]) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows; columns that no method has are left out."""
    shown = [column for column in _COLUMNS if any(_has(method, column[0]) for method in methods)]
    versus = any(method.row.get("vs_rag") for method in methods)
    headings = ["Method", "Questions", "Accuracy, %"]
    headings += (["Against naive RAG, points"] if versus else []) + [c[1] for c in shown]
    rows = []
    for method in methods:
        row = [Cell(method.label), Cell(f"{method.n:,}"), _accuracy(method)]
        row += [_versus(method)] if versus else []
        row += [_mean(method.row.get(name), fraction) for name, _, fraction in shown]
        rows.append([*row, Cell(f"{method.row.get('failed', 0):,}")])
    return [*headings, "Failed"], rows


def _method(name: str, row: Any, rows: Mapping[str, Any]) -> Method:
    try:
        low, high = row["ci95"]
        accuracy, n = row["accuracy"], int(row["n"])
        _check_columns(row)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'summary: method {name!r} needs "accuracy", "ci95" (two numbers) and "n", and '
            f"each of its columns a mean with its interval; give the form of summary.json"
        ) from error
    return Method(name, _label(name, rows), accuracy, low, high, n, row)


def _check_columns(row: Mapping[str, Any]) -> None:
    """Raise ``KeyError``, ``TypeError`` or ``ValueError`` for a column without its fields."""
    for name in (column[0] for column in _COLUMNS):
        if row.get(name) is not None:
            _, (_, _) = row[name]["mean"], row[name]["ci95"]
    if row.get("vs_rag") is not None:
        _, _, (_, _) = (row["vs_rag"][key] for key in ("difference", "p_value", "ci95"))


def _label(name: str, names: Mapping[str, Any]) -> str:
    if name.endswith(_UNTRAINED):
        return f"{name.removesuffix(_UNTRAINED)} before training"
    return f"{name} after training" if name + _UNTRAINED in names else _LABELS.get(name, name)


def _has(method: Method, column: str) -> bool:
    value = method.row.get(column)
    return isinstance(value, Mapping) and value.get("mean") is not None


def _accuracy(method: Method) -> Cell:
    if method.accuracy is None:
        return Cell(NO_VALUE)
    return _interval(_percentage, method.accuracy, (method.low, method.high))


def _versus(method: Method) -> Cell:
    versus = method.row.get("vs_rag")
    if not versus:
        return Cell(NO_VALUE)
    cell = _interval(points, versus["difference"], versus["ci95"])
    return Cell(cell.text, (*cell.notes, p_value(versus["p_value"])))


def _mean(value: Any, fraction: bool) -> Cell:
    if not isinstance(value, Mapping) or value.get("mean") is None:
        return Cell(NO_VALUE)
    return _interval(_percentage if fraction else number, value["mean"], value["ci95"])


def _interval(written: Callable[[Any], str], mean: float, ends: Sequence[float | None]) -> Cell:
    return Cell(written(mean), (" to ".join(written(end) for end in ends),))


def _percentage(fraction: float | None) -> str:
    """A percentage without its sign, which stands in the column's heading."""
    return percent(fraction)[:-2] if fraction is not None else NO_VALUE
