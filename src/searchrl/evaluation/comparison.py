"""A comparison of methods, run and written to a directory.

``results.json`` and ``results.md`` hold the table, the former beside the settings it was made with;
``episodes.jsonl`` holds every episode with its score.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from searchrl.agents.agent import Agent
from searchrl.data.forms import read_dataset
from searchrl.data.jsonl import write_jsonl
from searchrl.data.questions import Question
from searchrl.data.storage import write_json, write_text
from searchrl.errors import InputError
from searchrl.evaluation.runner import Evaluated, evaluate
from searchrl.evaluation.table import MethodSummary, summarise, to_json, to_markdown
from searchrl.experiment import Experiment
from searchrl.recipe import Recipe, SynthWikiData

_KEPT = ("accuracy", "em", "f1", "gold_recall", "context_tokens")
"""Scores that stand beside an episode."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""Opens a display for one activity: its label and its number of units."""


def check_evaluation(recipe: Recipe) -> None:
    """See that a recipe's evaluation can be run, before anything is made or loaded.

    Raises:
        InputError: no method or one twice, fewer held-out questions than are asked for, or a
            question without gold passages where the oracle needs them.
    """
    data, methods = recipe.data.test, recipe.evaluation.methods
    if not methods or len(set(methods)) < len(methods):
        raise InputError("evaluation.methods: name at least one method, and each once")
    wanted = recipe.evaluation.questions
    if isinstance(data, SynthWikiData):
        there = data.questions
    else:
        questions = read_dataset(data.questions, limit=data.limit)
        there = len(questions)
        if "oracle" in methods:
            _check_gold(data.questions, questions[:wanted])
    if there < wanted:
        raise InputError(
            f"evaluation.questions is {wanted} and data.test has {there}; "
            f"set evaluation.questions (--n) to {there} or less"
        )


def compare(
    experiment: Experiment,
    methods: Sequence[Agent],
    out: Path,
    progress: Progress,
    searcher: str | None = None,
) -> list[MethodSummary]:
    """Run the methods over the held-out questions, one after another, and write the results.

    Args:
        experiment: what the methods were built from; see ``check_evaluation``.
        methods: the agents, each with a name of its own.
        out: the directory to write to.
        progress: opens a display for each method.
        searcher: where the searcher was read from, for the record.
    """
    out.mkdir(parents=True, exist_ok=True)
    questions = experiment.test.questions[: experiment.recipe.evaluation.questions]
    done: list[Evaluated] = []
    for method in methods:
        with progress(f"evaluating {method.name}", len(questions)) as advance:
            done += asyncio.run(
                evaluate(
                    method,
                    questions,
                    experiment.generator,
                    experiment.judge,
                    lambda count, advance=advance: advance(count, ""),  # type: ignore[misc]
                )
            )
    summaries = summarise(item.score for item in done)
    settings = _settings(experiment, searcher)
    write_json(out / "results.json", to_json(summaries) | {"settings": settings})
    write_text(out / "results.md", to_markdown(summaries))
    write_jsonl(out / "episodes.jsonl", _rows(done))
    return summaries


def _rows(done: Iterable[Evaluated]) -> Iterable[dict[str, Any]]:
    for item in done:
        score = dataclasses.asdict(item.score)
        kept = {key: score[key] for key in _KEPT}
        yield item.episode.to_row() | {"score": None if item.score.failed else kept}


def _settings(experiment: Experiment, searcher: str | None) -> dict[str, Any]:
    """What the scores depend on, besides the code."""
    recipe = experiment.recipe
    return {
        "decoding": "greedy",
        "searcher": searcher or recipe.searcher.name,
        "generator": experiment.generator.fingerprint,
        "judge": None if recipe.judge is None else recipe.judge.name,
        "recipe": recipe.model_dump(mode="json"),
    }


def _check_gold(path: Path, questions: Iterable[Question]) -> None:
    for question in questions:
        if not question.gold_ids:
            raise InputError(
                f"{path}: question {question.id!r} has no supporting_ids; "
                "add them or leave the oracle out of evaluation.methods"
            )
