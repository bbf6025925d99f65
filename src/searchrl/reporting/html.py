"""``report.html``: one file that shows a run's result, its training and ten of its episodes.

The page needs no script and loads nothing; its content policy forbids both. Questions, passages
and model output are untrusted: the template engine cleans and escapes every value that is not
markup made here, so no field can be forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from searchrl.data.storage import write_text
from searchrl.errors import InputError
from searchrl.reporting.methods import (
    AXIS_LABEL,
    Method,
    comparison,
    headline,
    read_datasets,
    read_methods,
    table,
    to_bars,
)
from searchrl.reporting.numbers import number
from searchrl.reporting.svg import DARK, LIGHT, bar_chart, line_chart, stylesheet
from searchrl.reporting.text import clean, snippet

EPISODES_SHOWN = 10
"""More episodes would make the page slow to open; all of a run's are in its ``episodes/``."""

_FIRST_CURVES = (
    *("reward", "accuracy", "all_gold", "gold", "search", "kl", "entropy"),
    *("response", "token", "clip", "loss", "grad"),
)
"""Metrics whose name holds one of these words come first, in this order; guards come last."""
_OPEN_CURVES = 9
"""Curves beyond these are folded away."""
_ABBREVIATIONS = frozenset({"kl", "rag", "em", "f1", "gbr"})
_CURVE_SIZE = (320, 200)


@dataclass(frozen=True, slots=True)
class _Hit:
    """A passage as the page shows it."""

    rank: int
    id: str
    title: str
    text: str
    score: str
    selected: bool
    gold: bool


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn as the page shows it."""

    title: str
    query: str
    hits: tuple[_Hit, ...]


@dataclass(frozen=True, slots=True)
class _EpisodeView:
    """An episode as the page shows it; ``facts`` are pairs of name and value."""

    question: str
    method: str
    answers: tuple[str, ...]
    turns: tuple[_Turn, ...]
    context: tuple[_Hit, ...]
    answer: str | None
    answers_itself: bool
    end: str
    error: str | None
    reward: str
    failed: bool
    parts: tuple[tuple[str, str], ...]
    segments: tuple[Mapping[str, Any], ...]
    searches: int
    seconds: str


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    metrics: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any] | None,
    episodes: Sequence[Mapping[str, Any]],
) -> None:
    """Write the report of a run as one self-contained page.

    Args:
        path: the file to write, atomically.
        title: the run's name.
        facts: what was run, as pairs of name and value, in the order given.
        metrics: the lines of ``metrics.jsonl``; values that are not numbers are skipped.
        summary: the form of ``summary.json``; ``None`` before an evaluation.
        episodes: rows of ``Episode.to_row``; the first ten are shown.

    Raises:
        InputError: the summary or an episode is not in its form.
    """
    methods = read_methods(summary) if summary is not None else []
    datasets = read_datasets(summary) if summary is not None else {}
    curves = _curves(metrics)
    page = _template().render(
        title=title,
        facts=facts,
        headline=headline(methods) or _without_result(metrics),
        comparison=comparison(methods),
        charts=_bar_charts(methods),
        table=table(methods),
        datasets={name: table(rows) for name, rows in datasets.items()},
        curves=curves[:_OPEN_CURVES],
        more_curves=curves[_OPEN_CURVES:],
        episodes=[_episode(row, at) for at, row in enumerate(episodes[:EPISODES_SHOWN], start=1)],
        episode_total=len(episodes),
        styles=stylesheet(),
        light=LIGHT,
        dark=DARK,
    )
    write_text(path, page)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("searchrl.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["snippet"] = snippet
    return environment.get_template("report.html.jinja")


def _finalize(value: Any) -> Any:
    """Clean every value on its way to the page, before it is escaped."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _without_result(metrics: Sequence[Mapping[str, Any]]) -> str:
    steps = f"{len(metrics):,} training step{'' if len(metrics) == 1 else 's'} recorded"
    return f"No evaluation yet; {steps}."


def _bar_charts(methods: Sequence[Method]) -> list[Markup]:
    """The chart for wide screens and the one for phones; none without a result."""
    bars = to_bars(methods)
    widths = (720, 360) if bars else ()
    return [bar_chart(bars, width=width, axis_label=AXIS_LABEL).inline() for width in widths]


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """One chart a metric that has a number, the important ones first."""
    series: dict[str, list[tuple[float, float]]] = {}
    for position, row in enumerate(metrics, start=1):
        step = row.get("step", position)
        for name, value in row.items():
            if name != "step" and _is_number(value) and _is_number(step):
                series.setdefault(name, []).append((float(step), float(value)))
    return [_curve(name, series[name]) for name in sorted(series, key=_curve_order)]


def _curve(name: str, points: Sequence[tuple[float, float]]) -> Markup:
    width, height = _CURVE_SIZE
    label = _metric_label(name)
    drawing = line_chart({label: points}, width=width, height=height, x_label="step", y_label=label)
    return drawing.inline()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _curve_order(name: str) -> tuple[int, str]:
    lowered = name.lower()
    if lowered.startswith("guards/"):
        return len(_FIRST_CURVES) + 1, lowered
    places = (at for at, word in enumerate(_FIRST_CURVES) if word in lowered)
    return next(places, len(_FIRST_CURVES)), lowered


def _metric_label(name: str) -> str:
    """``"reward/mean"`` and ``"reward_mean"`` as ``"Reward mean"``; ``"kl"`` as ``"KL"``."""
    words = snippet(name.replace("/", " ").replace("_", " "), 44).split()
    words = [word.upper() if word.lower() in _ABBREVIATIONS else word for word in words]
    label = " ".join(words) or "unnamed"
    return label[:1].upper() + label[1:]


def _episode(row: Mapping[str, Any], position: int) -> _EpisodeView:
    try:
        return _episode_view(row)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"episode {position}: not a row of Episode.to_row ({type(error).__name__}: {error})"
        ) from error


def _episode_view(row: Mapping[str, Any]) -> _EpisodeView:
    question, reward = row["question"], row["reward"]
    gold = frozenset(question["supporting_ids"])
    turns = tuple(_turns(row, gold))
    value = reward["value"] if reward is not None else None
    parts = reward["parts"].items() if reward is not None else ()
    return _EpisodeView(
        question=question["question"],
        method=row["method"],
        answers=tuple(question["golden_answers"]),
        turns=turns,
        context=_hits(row["context"], (), gold),
        answer=row["answer"],
        answers_itself=row.get("answers_itself", False),
        end=row["end"].replace("_", " "),
        error=row["error"],
        reward="none" if value is None else number(value),
        failed=row["end"] == "infrastructure",
        parts=tuple((_metric_label(name), number(part)) for name, part in parts),
        segments=tuple(row["segments"]),
        searches=sum(turn["action"] == "search" for turn in row["turns"]),
        seconds=number(row["seconds"]),
    )


def _turns(row: Mapping[str, Any], gold: frozenset[str]) -> Iterable[_Turn]:
    """The initial retrieval, then each turn under a title that says what it was."""
    if row["initial"] is not None:
        first = row["initial"]
        asked = "" if first["query"] == row["question"]["question"] else first["query"]
        yield _turn("Retrieval before the first turn", {**first, "query": asked}, gold)
    searches = 0
    for turn in row["turns"]:
        action = turn["action"]
        searches += action == "search"
        titles = {"search": f"Search {searches}", "finish": "Finished", "answer": "Answered"}
        yield _turn(titles.get(action, "An action that could not be read"), turn, gold)


def _turn(title: str, turn: Mapping[str, Any], gold: frozenset[str]) -> _Turn:
    return _Turn(title, turn["query"], _hits(turn["hits"], turn["selected"] or (), gold))


def _hits(
    hits: Sequence[Mapping[str, Any]], selected: Sequence[int], gold: frozenset[str]
) -> tuple[_Hit, ...]:
    return tuple(
        _Hit(
            rank=position + 1,
            id=hit["id"],
            title=hit["title"] or hit["id"],
            text=hit["text"],
            score=number(hit["score"]),
            selected=position in selected,
            gold=hit["id"] in gold,
        )
        for position, hit in enumerate(hits)
    )
