"""``searchrl train``: train a recipe's searcher, in this process or in several under torchrun."""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from searchrl.cli.arguments import AsJson, Out, Overrides, Recipe, Threads, need_packages
from searchrl.errors import InputError

if TYPE_CHECKING:
    from searchrl.recipe import Recipe as LoadedRecipe
    from searchrl.training.parallel.processes import Processes


class Backend(StrEnum):
    """What trains."""

    LOCAL = "local"
    VERL = "verl"


def command(
    recipe: Recipe,
    out: Out,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")
    ] = False,
    threads: Threads = None,
    as_json: AsJson = False,
    backend: Annotated[
        Backend, typer.Option(help="What trains: this process, or verl on Ray.")
    ] = Backend.LOCAL,
    ray_address: Annotated[
        str | None,
        typer.Option(help="verl: a running Ray cluster; one is started here when left out."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="verl: print the command and its settings; run nothing."),
    ] = False,
) -> None:
    """Train a searcher; OUT becomes a run directory with checkpoints/final in it.

    torchrun --nproc-per-node N -m searchrl train ... trains in N processes.

    Example: searchrl train tiny-grpo --out runs/first --set run.steps=10
    """
    from searchrl.recipe_file import load_recipe
    from searchrl.training.parallel.processes import joined

    if backend is Backend.LOCAL and (dry_run or ray_address is not None):
        option = "--dry-run" if dry_run else "--ray-address"
        raise InputError(f"{option} goes with --backend verl")
    with joined() as processes:
        if backend is Backend.VERL and processes.size > 1:
            raise InputError("--backend verl starts processes of its own: leave torchrun out")
        loaded = load_recipe(recipe, overrides or ())
        if dry_run:
            _show_plan(loaded, out, ray_address, as_json)
            return
        final = _train(loaded, out, resume, threads, backend, ray_address, processes)
        if processes.rank > 0:
            return
    if as_json:
        typer.echo(json.dumps({"run": str(out), "searcher": str(final)}))
    else:
        typer.echo(f"trained searcher: {final}")


def _train(
    recipe: LoadedRecipe,
    out: Path,
    resume: bool,
    threads: int | None,
    backend: Backend,
    ray_address: str | None,
    processes: Processes,
) -> Path:
    """Train with whatever was asked for; returns where the searcher is."""
    from searchrl.cli.machine import use_machine
    from searchrl.cli.progress import progress
    from searchrl.cli.usage import show_usage
    from searchrl.experiment import Experiment
    from searchrl.training.parallel.processes import first_before_others, local_size
    from searchrl.training.run_directory import RunDirectory
    from searchrl.training.trainer import train

    if backend is Backend.VERL:
        need_packages("verl", "verl", "transfer_queue")
    use_machine(threads, local_size())
    experiment, directory = Experiment(recipe, out), RunDirectory(out)
    with first_before_others(processes):
        if processes.rank == 0 and not resume and directory.config.is_file():
            raise InputError(f"{out}: holds a run already; add --resume or choose another --out")
        # Opened before OUT becomes a run, so that unusable data leaves no run behind.
        _ = experiment.train
    if processes.rank > 0:
        return train(experiment, directory, resume, processes=processes)
    with progress("training", recipe.run.steps) as advance:

        def note(step: int, metrics: dict[str, float]) -> None:
            advance(step, training_note(metrics))

        if backend is Backend.VERL:
            from searchrl.distributed.launch import train_on_verl

            final = train_on_verl(experiment, directory, resume, ray_address, note)
        else:
            final = train(experiment, directory, resume, note, processes)
    show_usage(experiment)
    return final


def _show_plan(recipe: LoadedRecipe, out: Path, ray_address: str | None, as_json: bool) -> None:
    """Print what ``--backend verl`` would start."""
    from searchrl.distributed.launch import plan

    launch = plan(recipe, out, ray_address)
    if as_json:
        shown = {
            "command": launch.command,
            "environment": launch.environment,
            "settings": launch.settings,
        }
        typer.echo(json.dumps(shown, indent=2))
        return
    for name, value in launch.environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    program = shlex.join(launch.command[:3])
    arguments = (shlex.quote(argument) for argument in launch.command[3:])
    typer.echo(" \\\n  ".join([program, *arguments]))


def training_note(metrics: dict[str, float]) -> str:
    """The few numbers worth watching while a run goes."""
    return f"reward {metrics['reward/mean']:.3f}, searches {metrics['episodes/searches']:.2f}"
