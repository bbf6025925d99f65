"""``searchrl evaluate``: methods side by side on held-out questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from searchrl.cli.arguments import AsJson, Out, Overrides, Recipe, Threads, split_names
from searchrl.errors import InputError


def command(
    recipe: Recipe,
    out: Out,
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated, as in rag,s3,oracle; docs/methods.md lists all."),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Held-out questions.")] = None,
    searcher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[METHOD=]PATH",
            help="A run or checkpoint whose searcher the recipe's agent uses, or the method that "
            "is named, as in s3=runs/a; repeatable.",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what these methods have finished in OUT.")
    ] = False,
    overrides: Overrides = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate methods with one generator; writes results.json|csv|md|tex, episodes.jsonl.

    An evaluation that was killed goes on where it stopped when it is called again.

    Example: searchrl evaluate tiny-grpo --methods rag,s3 --searcher runs/first --out results
    """
    from searchrl.cli.machine import use_machine
    from searchrl.cli.progress import progress
    from searchrl.cli.results import show_results
    from searchrl.cli.usage import show_usage
    from searchrl.evaluation.comparison import check_evaluation, compare
    from searchrl.evaluation.written import to_json
    from searchrl.experiment import Experiment
    from searchrl.methods import entrants, find_trained
    from searchrl.recipe_file import load_recipe

    general, own = _searchers(searcher or ())
    loaded = load_recipe(recipe, [*(overrides or ()), *_changes(methods, n, own)])
    check_evaluation(loaded)
    use_machine(threads)
    trained = None if general is None else find_trained(general)
    experiment = Experiment(loaded, out)
    comparison = compare(
        experiment,
        entrants(experiment, trained),
        out,
        progress,
        None if trained is None else trained.model,
        restart,
    )
    show_usage(experiment)
    if as_json:
        typer.echo(json.dumps(to_json(comparison)))
    else:
        show_results(comparison)


def _changes(methods: str | None, n: int | None, searchers: Mapping[str, str]) -> list[str]:
    """What the command's own options say, as changes of a recipe."""
    changes = []
    if methods is not None:
        names = [_entry(name) for name in split_names(methods, "--methods")]
        changes.append(f"evaluation.methods={json.dumps(names)}")
    if n is not None:
        changes.append(f"evaluation.questions={n}")
    return changes + [
        f"evaluation.searchers.{entry}={json.dumps(path)}" for entry, path in searchers.items()
    ]


def _entry(name: str) -> str:
    """A method as recipes write it; a hyphen stands for an underscore, but not in a label."""
    method, colon, label = name.partition(":")
    return method.replace("-", "_") + colon + label


def _searchers(options: Sequence[str]) -> tuple[Path | None, dict[str, str]]:
    """The path that names no method, and those that do.

    Raises:
        InputError: two paths name no method, or two name the same.
    """
    general: Path | None = None
    own: dict[str, str] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if equals and not Path(option).exists():
            if own.setdefault(_entry(name), path) != path:
                raise InputError(f"--searcher {option}: {name} has one already")
        elif general is not None:
            raise InputError(
                f"--searcher {option}: {general} is the recipe's agent's already; name the method, "
                f"as in --searcher s3={option}"
            )
        else:
            general = Path(option)
    return general, own
