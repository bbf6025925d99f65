"""``searchrl sample``: rejection sampling, which makes examples for ``searchrl sft``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from searchrl.cli.arguments import AsJson, Out, Overrides, Recipe, Threads

if TYPE_CHECKING:
    from searchrl.agents.episode import Episode
    from searchrl.experiment import Experiment
    from searchrl.models.local import LocalModel


def command(
    recipe: Recipe,
    out: Out,
    searcher: Annotated[
        Path | None, typer.Option(help="A run or checkpoint whose searcher is sampled from.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Training questions.")] = None,
    overrides: Overrides = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Sample episodes of the recipe's agent and keep the successful ones in OUT/examples.

    Example: searchrl sample tiny-grpo --out runs/sampled --n 100
    """
    from searchrl.cli.machine import use_machine
    from searchrl.experiment import Experiment
    from searchrl.recipe_file import load_recipe
    from searchrl.training.checkpoint import searcher_path
    from searchrl.training.rejection import EXAMPLES, write_examples

    loaded = load_recipe(recipe, overrides or ())
    use_machine(threads)
    experiment = Experiment(loaded, out)
    source = loaded.searcher.model if searcher is None else str(searcher_path(searcher))
    model = experiment.searcher(source)
    questions = experiment.train.questions[:n]
    kept = _sample(experiment, model, len(questions))
    write_examples(out / EXAMPLES, kept, source, model.tokenizer)
    attempts = len(questions) * loaded.supervised.attempts
    if as_json:
        facts = {"examples": str(out / EXAMPLES), "episodes": attempts, "kept": len(kept)}
        typer.echo(json.dumps(facts))
    else:
        typer.echo(f"{out / EXAMPLES}: {len(kept):,} of {attempts:,} episodes")


def _sample(experiment: Experiment, model: LocalModel, count: int) -> list[Episode]:
    """The successful episodes of the first ``count`` training questions, with progress."""
    import asyncio

    from searchrl.agents.trained import open_agent
    from searchrl.cli.precompute import fill_cache
    from searchrl.cli.progress import progress
    from searchrl.training.rejection import sample_episodes

    recipe, split = experiment.recipe, experiment.train
    if recipe.reward.kind == "gain_beyond_rag":
        fill_cache(experiment)
    options = recipe.rollout.model_copy(update={"group_size": recipe.supervised.attempts})
    with progress("sampling", count) as advance:
        return asyncio.run(
            sample_episodes(
                open_agent(recipe.agent, model, split.retriever),
                experiment.reward(),
                split.questions[:count],
                options,
                recipe.seed,
                recipe.supervised.least_reward,
                lambda done: advance(done, ""),
            )
        )
