"""The questions of all steps in order, as one file: what verl is given as its data.

Which question is asked when is a function of the seed and the step, as in process, so a file in
that order, read from front to back, trains the same questions in the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from searchrl.data.jsonl import read_jsonl, write_jsonl
from searchrl.data.questions import Question, question_from_row
from searchrl.recipe import Recipe
from searchrl.training.rollout import questions_of_step

STEP = "step"


def write_schedule(path: Path, recipe: Recipe, questions: Sequence[Question]) -> None:
    """Write the questions of every step, each with the step it is asked in.

    Raises:
        InputError: fewer questions than a step needs.
    """
    write_jsonl(path, _rows(recipe, questions))


def _rows(recipe: Recipe, questions: Sequence[Question]) -> Iterator[dict[str, Any]]:
    count = recipe.rollout.questions_per_step
    for step in range(recipe.run.steps):
        for question in questions_of_step(questions, step, count, recipe.seed):
            yield {**question.to_row(), STEP: step}


def read_schedule(path: Path) -> list[tuple[int, Question]]:
    """The steps, counted from 0, and their questions.

    Raises:
        InputError: the file is missing or a line is malformed.
    """
    return [
        (int(row[STEP]), question_from_row(row, where=f"{path}:{number}"))
        for number, row in read_jsonl(path)
    ]
