"""A comparison of methods, run and written to a directory.

``results.json``, ``.csv``, ``.md`` and ``.tex`` hold the tables, the first beside the settings they
were made with;
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
from searchrl.data.forms import read_dataset
from searchrl.data.options import Data, SynthWikiData
from searchrl.data.questions import Question
from searchrl.data.storage import write_json, write_text
from searchrl.errors import InputError
from searchrl.evaluation.datasets import Comparison, compare_scores
from searchrl.evaluation.episode_log import EpisodeLog
from searchrl.evaluation.options import method_of
from searchrl.evaluation.runner import Evaluated, evaluate
from searchrl.evaluation.written import to_csv, to_json, to_latex, to_markdown
from searchrl.experiment import Experiment, Split, first_of_all, first_of_each
from searchrl.models.weights import model_identity
from searchrl.recipe import Recipe

Progress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""Opens a display for one activity: its label and its number of units."""


def check_evaluation(recipe: Recipe) -> None:
    """See that a recipe's evaluation can be run, before anything is made or loaded.

    Raises:
        InputError: no method or one twice, fewer held-out questions than are asked for, or a
            question without gold passages where the oracle needs them.
    """
    methods, wanted = recipe.evaluation.methods, recipe.evaluation.questions
    if not methods or len(set(methods)) < len(methods):
        raise InputError("evaluation.methods: name at least one method, and each once")
    gold = any(method_of(entry) == "oracle" for entry in methods)
    if recipe.data.datasets:
        for dataset in recipe.data.datasets.values():
            _check_data(dataset, first_of_all, wanted, gold)
        return
    first = first_of_each if recipe.several_datasets else first_of_all
    there = _check_data(recipe.data.test, first, wanted, gold)
    if there < wanted and not recipe.several_datasets:
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


def _check_data(
    data: Data,
    first: Callable[[Sequence[Question], int], Sequence[Question]],
    wanted: int,
    gold: bool,
) -> int:
    """How many questions there are, those that are wanted with gold passages where need be."""
    if isinstance(data, SynthWikiData):
        return data.questions
    questions = read_dataset(data.questions, limit=data.limit)
    if gold:
        _check_gold(data.questions, first(questions, wanted))
    return len(questions)


def compare(
    experiment: Experiment,
    entrants: Sequence[Entrant],
    out: Path,
    progress: Progress,
    searcher: str | None = None,
    restart: bool = False,
) -> Comparison:
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
    splits = experiment.held_out
    questions = [question for split in splits for question in split.questions]
    shared = shared_settings(experiment)
    settings = {entrant.name: {**shared, **entrant.settings} for entrant in entrants}
    with EpisodeLog.open(out, settings, restart) as log:
        for entrant in entrants:
            _run(entrant, experiment, log, progress)
        scores = log.arrange([entrant.name for entrant in entrants], questions)
    comparison = compare_scores(scores, experiment.recipe.several_datasets)
    record = _settings(experiment, searcher)
    write_json(out / "results.json", to_json(comparison) | {"settings": record})
    write_text(out / "results.csv", to_csv(comparison))
    write_text(out / "results.md", to_markdown(comparison))
    write_text(out / "results.tex", to_latex(comparison))
    return comparison


def shared_settings(experiment: Experiment) -> dict[str, Any]:
    """What the scores of every method depend on; the device is not among it."""
    recipe = experiment.recipe
    sections = recipe.model_dump(mode="json", include={"retriever", "rerank", "judge"})
    held_out = "datasets" if recipe.data.datasets else "test"
    if recipe.judge is not None:
        sections["judge"]["model"] = model_identity(recipe.judge)
    shared = {
        "decoding": "greedy",
        "generator": experiment.generator.fingerprint,
        "generator_weights": model_identity(recipe.generator),
        "data": recipe.data.model_dump(mode="json", include={held_out}),
        "rag_k": recipe.reward.rag_k,
        **sections,
    }
    return {key: _without_device(value) for key, value in shared.items()}


def _without_device(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_device(inner) for key, inner in value.items() if key != "device"}


def _run(entrant: Entrant, experiment: Experiment, log: EpisodeLog, progress: Progress) -> None:
    """Let a method finish what it owes; an agent is opened only where there is something."""
    owed = [(split, log.owed(entrant.name, split.questions)) for split in experiment.held_out]
    total = sum(len(split.questions) for split in experiment.held_out)
    done = total - sum(len(questions) for _, questions in owed)
    with progress(f"evaluating {entrant.name}", total) as advance:
        advance(done, "")

        def finished(item: Evaluated) -> None:
            nonlocal done
            log.append(item)
            done += 1
            advance(done, "")

        for split, questions in owed:
            if questions:
                agent, name = entrant.open(split), entrant.name
                judges = experiment.generator, experiment.judge
                asyncio.run(evaluate(agent, name, questions, *judges, finished))


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
