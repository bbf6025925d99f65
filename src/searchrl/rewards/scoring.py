"""Scores of a prediction file against a question file, a row and a mean for each metric.

Every question is scored exactly once: a missing, unknown or repeated prediction is an error, since
a mean over whatever happened to be there compares with nothing. The default metrics are those of
``text.py``; an official script is asked for by its name in ``official.OFFICIAL``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

from searchrl.data.jsonl import read_jsonl
from searchrl.data.questions import Question
from searchrl.errors import InputError
from searchrl.rewards import text
from searchrl.rewards.official import OFFICIAL

DEFAULT_METRICS = ("em", "f1", "sub_em", "span")

_METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "em": text.exact_match,
    "f1": text.f1,
    "sub_em": text.substring_match,
    "span": text.answer_span,
    **OFFICIAL,
}
_NAMED_IDS = 3


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """The scores of one question, each in [0, 1], by metric name."""

    id: str
    scores: Mapping[str, float]

    def to_row(self) -> dict[str, Any]:
        """A JSON object: the id, then a field for each metric."""
        return {"id": self.id, **self.scores}


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Scores of all questions, in the order of the question file.

    Attributes:
        rows: one row a question.
        means: the mean over all rows, by metric name, in the order asked for.
    """

    rows: tuple[ScoreRow, ...]
    means: Mapping[str, float]


def score_predictions(
    predictions: Mapping[str, str],
    questions: Sequence[Question],
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> ScoreTable:
    """Score one prediction for each question.

    Args:
        predictions: prediction by question id.
        questions: the questions with their gold answers.
        metrics: ``em``, ``f1``, ``sub_em``, ``span``, or any key of ``official.OFFICIAL``.

    Raises:
        InputError: an unknown metric, no question, a question without a prediction, or a
            prediction without a question.
    """
    _check_metrics(metrics)
    _check_ids(predictions, questions)
    rows = tuple(_score(question, predictions[question.id], metrics) for question in questions)
    means = {name: fsum(row.scores[name] for row in rows) / len(rows) for name in metrics}
    return ScoreTable(rows, means)


def read_predictions(path: Path) -> dict[str, str]:
    """Read lines ``{"id","prediction"}``; other fields are ignored.

    Raises:
        InputError: a malformed line or a repeated id, with the line number.
    """
    predictions: dict[str, str] = {}
    for number, row in read_jsonl(path):
        identifier, prediction = _prediction_from_row(row, where=f"{path}:{number}")
        if identifier in predictions:
            raise InputError(f"{path}:{number}: id {identifier!r} appears twice; keep one line")
        predictions[identifier] = prediction
    return predictions


def _prediction_from_row(row: dict[str, Any], where: str) -> tuple[str, str]:
    identifier = row.get("id")
    if not isinstance(identifier, str | int) or isinstance(identifier, bool):
        raise InputError(f'{where}: field "id" is missing or is not a string')
    prediction = row.get("prediction")
    if not isinstance(prediction, str):
        raise InputError(
            f'{where}: field "prediction" is missing or is not a string; '
            'write "" where the model gave no answer'
        )
    return str(identifier), prediction


def _score(question: Question, prediction: str, metrics: Sequence[str]) -> ScoreRow:
    scores = {name: float(_METRICS[name](prediction, question.answers)) for name in metrics}
    return ScoreRow(question.id, scores)


def _check_metrics(metrics: Sequence[str]) -> None:
    for name in metrics:
        if name not in _METRICS:
            raise InputError(f"metric {name!r} is not known; choose from {', '.join(_METRICS)}")


def _check_ids(predictions: Mapping[str, str], questions: Sequence[Question]) -> None:
    if not questions:
        raise InputError("no question to score; the question file needs at least one line")
    known = {question.id for question in questions}
    missing = [question.id for question in questions if question.id not in predictions]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(questions)} questions have no prediction: "
            f'{_name_ids(missing)}; add a line {{"id","prediction"}} for each'
        )
    unknown = [identifier for identifier in predictions if identifier not in known]
    if unknown:
        raise InputError(
            f"{len(unknown)} predictions have an id that no question has: "
            f"{_name_ids(unknown)}; drop them or score against the matching question file"
        )


def _name_ids(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:_NAMED_IDS])) + (", ..." if len(ids) > _NAMED_IDS else "")
