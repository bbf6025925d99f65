"""A comparison of methods, run and written to a directory.

``results.json`` and ``results.md`` hold the table, ``episodes.jsonl`` every episode with its score.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from searchrl.agents.agent import Agent
from searchrl.data.jsonl import write_jsonl
from searchrl.data.storage import write_json, write_text
from searchrl.errors import InputError
from searchrl.evaluation.runner import Evaluated, evaluate
from searchrl.evaluation.table import MethodSummary, summarise, to_json, to_markdown
from searchrl.experiment import Experiment

Progress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""Opens a display for one activity: its label and its number of units."""


def compare(
    experiment: Experiment, methods: Sequence[Agent], out: Path, progress: Progress
) -> list[MethodSummary]:
    """Run the methods over the held-out questions, one after another, and write the results.

    Raises:
        InputError: there are fewer held-out questions than the recipe asks for.
    """
    wanted = experiment.recipe.evaluation.questions
    questions = experiment.test.questions[:wanted]
    if len(questions) < wanted:
        raise InputError(
            f"evaluation.questions = {wanted}, but the test questions are {len(questions)}"
        )
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
    write_json(out / "results.json", to_json(summaries))
    write_text(out / "results.md", to_markdown(summaries))
    write_jsonl(out / "episodes.jsonl", _rows(done))
    return summaries


def _rows(done: Iterable[Evaluated]) -> Iterable[dict[str, Any]]:
    for item in done:
        score = dataclasses.asdict(item.score)
        kept = ("accuracy", "em", "f1", "gold_recall", "context_tokens")
        yield item.episode.to_row() | {"score": {key: score[key] for key in kept}}
