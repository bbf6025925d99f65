"""``searchrl train``: train a recipe's searcher."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from searchrl.cli.arguments import AsJson, Out, Overrides, Recipe, Threads


def command(
    recipe: Recipe,
    out: Out,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")
    ] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train a searcher; OUT becomes a run directory with checkpoints/final in it.

    Example: searchrl train tiny-grpo --out runs/first --set run.steps=10
    """
    from searchrl.cli.machine import use_machine
    from searchrl.cli.progress import progress
    from searchrl.cli.usage import show_usage
    from searchrl.errors import InputError
    from searchrl.experiment import Experiment
    from searchrl.recipe import load_recipe
    from searchrl.training.run_directory import RunDirectory
    from searchrl.training.trainer import train

    loaded = load_recipe(recipe, overrides or ())
    use_machine(threads)
    experiment, directory = Experiment(loaded, out), RunDirectory(out)
    if not resume and directory.config.is_file():
        raise InputError(f"{out}: holds a run already; add --resume or choose another --out")
    # Opened before OUT becomes a run, so that unusable data leaves no run behind.
    _ = experiment.train
    with progress("training", loaded.run.steps) as advance:
        final = train(
            experiment,
            directory,
            resume,
            lambda step, metrics: advance(step, training_note(metrics)),
        )
    show_usage(experiment)
    if as_json:
        typer.echo(json.dumps({"run": str(out), "searcher": str(final)}))
    else:
        typer.echo(f"trained searcher: {final}")


def training_note(metrics: dict[str, float]) -> str:
    """The few numbers worth watching while a run goes."""
    return f"reward {metrics['reward/mean']:.3f}, searches {metrics['episodes/searches']:.2f}"
