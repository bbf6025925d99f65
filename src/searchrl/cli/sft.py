"""``searchrl sft``: supervised fine-tuning of a recipe's searcher."""

from __future__ import annotations

import json

import typer

from searchrl.cli.arguments import AsJson, Out, Overrides, Recipe, Threads


def command(
    recipe: Recipe,
    out: Out,
    overrides: Overrides = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on supervised.examples, or on the training questions and their answers.

    Example: searchrl sft tiny-grpo --out runs/sft --set supervised.examples=runs/sampled/examples
    """
    from searchrl.cli.machine import use_machine
    from searchrl.cli.progress import progress
    from searchrl.errors import InputError
    from searchrl.experiment import Experiment
    from searchrl.recipe_file import load_recipe
    from searchrl.training.finetuning import finetune
    from searchrl.training.run_directory import RunDirectory

    loaded = load_recipe(recipe, overrides or ())
    use_machine(threads)
    directory = RunDirectory(out)
    if directory.config.is_file():
        raise InputError(f"{out}: holds a run already; choose another --out")
    final = finetune(Experiment(loaded, out), directory, progress)
    if as_json:
        typer.echo(json.dumps({"run": str(out), "searcher": str(final)}))
    else:
        typer.echo(f"fine-tuned searcher: {final}")
