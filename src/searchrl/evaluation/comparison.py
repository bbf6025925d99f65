"""A comparison of methods, run and written to a directory.

``results.json`` and ``results.md`` hold the table, the former beside the settings it was made with;
``episodes.jsonl`` holds every episode with its score, and is what a killed comparison goes on from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchrl.agents.agent import Agent
from searchrl.data.questions import Question, read_questions
from searchrl.data.storage import write_json, write_text
from searchrl.errors import InputError
from searchrl.evaluation.episode_log import EpisodeLog
from searchrl.evaluation.runner import Evaluated, evaluate
from searchrl.evaluation.table import MethodSummary, summarise, to_json, to_markdown
from searchrl.experiment import Experiment, Split
from searchrl.models.weights import model_identity
from searchrl.recipe import Recipe, SynthWikiData

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
        questions = read_questions(data.questions, data.limit)
        there = len(questions)
        if "oracle" in methods:
            _check_gold(data.questions, questions[:wanted])
    if there < wanted:
        raise InputError(
            f"evaluation.questions is {wanted} and data.test has {there}; "
            f"set evaluation.questions (--n) to {there} or less"
        )


@dataclass(frozen=True, slots=True)
class Entrant:
    """A method in a comparison.

    Attributes:
        name: what it is called there.
        open: opens its agent over a split; not called where nothing is owed.
        settings: what its scores depend on besides ``shared_settings``; JSON values.
    """

    name: str
    open: Callable[[Split], Agent]
    settings: Mapping[str, Any]


def compare(
    experiment: Experiment,
    entrants: Sequence[Entrant],
    out: Path,
    progress: Progress,
    searcher: str | None = None,
    restart: bool = False,
) -> list[MethodSummary]:
    """Run methods over the held-out questions, one after another, and write the results.

    What a comparison killed before has finished there is not run again.

    Args:
        experiment: what the methods are opened over; see ``check_evaluation``.
        entrants: the methods, each with a name of its own.
        out: the directory to write to.
        progress: opens a display for each method.
        searcher: where the searcher was read from, for the record.
        restart: forget what these methods have finished there.

    Raises:
        InputError: a method has finished questions there with other settings.
    """
    questions = experiment.test.questions[: experiment.recipe.evaluation.questions]
    shared = shared_settings(experiment)
    settings = {entrant.name: {**shared, **entrant.settings} for entrant in entrants}
    with EpisodeLog.open(out, settings, restart) as log:
        for entrant in entrants:
            _run(entrant, experiment, questions, log, progress)
        scores = log.arrange([entrant.name for entrant in entrants], questions)
    summaries = summarise(scores)
    record = _settings(experiment, searcher)
    write_json(out / "results.json", to_json(summaries) | {"settings": record})
    write_text(out / "results.md", to_markdown(summaries))
    return summaries


def shared_settings(experiment: Experiment) -> dict[str, Any]:
    """What the scores of every method depend on; the device is not among it."""
    recipe = experiment.recipe
    sections = recipe.model_dump(mode="json", include={"retriever", "rerank", "judge"})
    if recipe.judge is not None:
        sections["judge"]["model"] = model_identity(recipe.judge)
    shared = {
        "decoding": "greedy",
        "generator": experiment.generator.fingerprint,
        "generator_weights": model_identity(recipe.generator),
        "data": recipe.data.test.model_dump(mode="json"),
        "rag_k": recipe.reward.rag_k,
        **sections,
    }
    return {key: _without_device(value) for key, value in shared.items()}


def _without_device(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_device(inner) for key, inner in value.items() if key != "device"}


def _run(
    entrant: Entrant,
    experiment: Experiment,
    questions: Sequence[Question],
    log: EpisodeLog,
    progress: Progress,
) -> None:
    """Let a method finish what it owes; its agent is opened only where there is something."""
    owed = log.owed(entrant.name, questions)
    done = len(questions) - len(owed)
    with progress(f"evaluating {entrant.name}", len(questions)) as advance:
        advance(done, "")
        if not owed:
            return

        def finished(item: Evaluated) -> None:
            nonlocal done
            log.append(item)
            done += 1
            advance(done, "")

        agent = entrant.open(experiment.test)
        asyncio.run(
            evaluate(agent, entrant.name, owed, experiment.generator, experiment.judge, finished)
        )


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
