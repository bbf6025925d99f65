"""``searchrl evaluate``: methods side by side on held-out questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from searchrl.cli.arguments import AsJson, Out, Overrides, Recipe, Threads, split_names


def command(
    recipe: Recipe,
    out: Out,
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated, as in rag,s3,oracle; docs/methods.md lists all."),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Held-out questions.")] = None,
    searcher: Annotated[
        Path | None,
        typer.Option(help="A run or checkpoint whose searcher the recipe's agent uses."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what these methods have finished in OUT.")
    ] = False,
    overrides: Overrides = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate methods with one generator; writes results.json, results.md, episodes.jsonl.

    An evaluation that was killed goes on where it stopped when it is called again.

    Example: searchrl evaluate tiny-grpo --methods rag,s3 --searcher runs/first --out results
    """
    from searchrl.cli.machine import use_machine
    from searchrl.cli.progress import progress
    from searchrl.cli.results import show_results
    from searchrl.cli.usage import show_usage
    from searchrl.evaluation.comparison import check_evaluation, compare
    from searchrl.evaluation.table import to_json
    from searchrl.experiment import Experiment
    from searchrl.methods import entrants
    from searchrl.recipe import load_recipe
    from searchrl.training.checkpoint import searcher_path

    changes = list(overrides or ())
    if methods is not None:
        changes.append(f"evaluation.methods={json.dumps(split_names(methods, '--methods'))}")
    if n is not None:
        changes.append(f"evaluation.questions={n}")
    loaded = load_recipe(recipe, changes)
    check_evaluation(loaded)
    use_machine(threads)
    trained = None if searcher is None else str(searcher_path(searcher))
    experiment = Experiment(loaded, out)
    summaries = compare(experiment, entrants(experiment, trained), out, progress, trained, restart)
    show_usage(experiment)
    if as_json:
        typer.echo(json.dumps(to_json(summaries)))
    else:
        show_results(summaries)
