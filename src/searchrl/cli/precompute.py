"""``searchrl precompute``: naive RAG's score for every training question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from searchrl.cli.arguments import AsJson, Out, Overrides, Recipe, Threads

if TYPE_CHECKING:
    from searchrl.experiment import Experiment
    from searchrl.training.precompute import PrecomputeReport


def command(
    recipe: Recipe,
    out: Out,
    overrides: Overrides = None,
    original: Annotated[
        Path | None, typer.Option(help="Also write the cache in s3's rag_cache.json form.")
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Fill OUT/rag_cache.jsonl; questions that are in it already are not asked again.

    Example: searchrl precompute tiny-grpo --out runs/first
    """
    from searchrl.cli.machine import use_machine
    from searchrl.cli.usage import show_usage
    from searchrl.experiment import Experiment
    from searchrl.recipe_file import load_recipe
    from searchrl.rewards.rag_cache import write_original

    use_machine(threads)
    experiment = Experiment(load_recipe(recipe, overrides or ()), out)
    done = fill_cache(experiment)
    show_usage(experiment)
    if original is not None:
        write_original(original, experiment.cache())
    facts = {"questions": done.questions, "computed": done.computed, "solved": done.solved}
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        typer.echo(
            f"naive RAG answers {done.solved} of {done.questions} questions ({done.computed} new)"
        )


def fill_cache(experiment: Experiment) -> PrecomputeReport:
    """Answer an experiment's training questions by naive RAG, with progress."""
    import asyncio

    from searchrl.cli.progress import progress
    from searchrl.training.precompute import precompute

    split = experiment.train
    with progress("naive RAG", len(split.questions)) as advance:
        return asyncio.run(
            precompute(
                split.questions,
                split.retriever,
                experiment.recipe.reward.rag_k,
                experiment.generator,
                experiment.judge,
                experiment.cache(),
                lambda done: advance(done, ""),
            )
        )
