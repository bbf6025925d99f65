"""``searchrl demo``: a recipe from its data to its report on this machine, in minutes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from searchrl.cli.arguments import Overrides, Threads

if TYPE_CHECKING:
    from searchrl.evaluation.comparison import Entrant
    from searchrl.evaluation.datasets import Comparison
    from searchrl.experiment import Experiment

_WORLDS = 2_500


def command(
    out: Annotated[Path, typer.Option(help="The run directory to write.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Another seed, other worlds and draws.", min=0)] = 0,
    recipe: Annotated[str, typer.Option(help="A recipe over generated worlds.")] = "tiny-grpo",
    overrides: Overrides = None,
    threads: Threads = None,
) -> None:
    """Index, precompute, train, evaluate and report, with the shipped tiny models.

    Trains a searcher on one generated encyclopedia and compares it with naive RAG on another one
    that shares no entity with it. Writes OUT/summary.json and OUT/report.html.

    Example: searchrl demo --out runs/demo --seed 0
    """
    from searchrl.cli.machine import use_machine
    from searchrl.cli.results import show_results
    from searchrl.data.storage import write_json
    from searchrl.errors import InputError
    from searchrl.evaluation.comparison import check_evaluation
    from searchrl.evaluation.written import to_json
    from searchrl.experiment import Experiment
    from searchrl.recipe_file import load_recipe
    from searchrl.reporting.run_report import write_run_report

    train_world, test_world = 2 * (seed % _WORLDS), 2 * (seed % _WORLDS) + 1
    worlds = (f"data.train.seed={train_world}", f"data.test.seed={test_world}")
    loaded = load_recipe(recipe, (f"seed={seed}", *worlds, *(overrides or ())))
    check_evaluation(loaded)
    if (out / "config.json").exists():
        raise InputError(f"{out}: holds a run already; remove it or choose another --out")
    use_machine(threads)
    seconds: dict[str, float] = {}
    experiment = Experiment(loaded, out)
    comparison = _run(experiment, out, seconds)
    rollout = loaded.rollout
    episodes = loaded.run.steps * rollout.questions_per_step * rollout.group_size
    summary: dict[str, Any] = to_json(comparison)
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    write_json(out / "summary.json", summary | {"training_episodes": episodes, "seconds": rounded})
    report = write_run_report(out)
    show_results(comparison)
    typer.echo(f"{episodes:,} training episodes, {seconds['total']:.0f} s in all")
    typer.echo(f"report: {report}")


def _run(experiment: Experiment, out: Path, seconds: dict[str, float]) -> Comparison:
    """All stages; ``seconds`` is filled as they end."""
    from searchrl.cli.precompute import fill_cache
    from searchrl.cli.progress import progress
    from searchrl.cli.train import training_note
    from searchrl.evaluation.comparison import compare
    from searchrl.training.run_directory import RunDirectory
    from searchrl.training.trainer import train

    with _timed(seconds, "total"):
        with _timed(seconds, "index"), progress("indexing", 2) as advance:
            advance(1, f"{len(experiment.train.questions)} training questions")
            advance(2, f"{len(experiment.test.questions)} held-out questions")
        with _timed(seconds, "precompute"):
            fill_cache(experiment)
        with (
            _timed(seconds, "train"),
            progress("training", experiment.recipe.run.steps) as advance,
        ):
            trained = train(
                experiment,
                RunDirectory(out),
                on_step=lambda step, metrics: advance(step, training_note(metrics)),
            )
        with _timed(seconds, "evaluate"):
            entrants = _entrants(experiment, str(trained))
            return compare(experiment, entrants, out, progress, str(trained))


def _entrants(experiment: Experiment, trained: str) -> list[Entrant]:
    """The baselines, the recipe's agent before and after training, and the ceiling."""
    from searchrl.methods import Trained, entrant

    kind = experiment.recipe.agent.kind
    return [
        entrant("direct", "direct", experiment),
        entrant("rag", "rag", experiment),
        entrant(f"{kind}-untrained", kind, experiment),
        entrant(kind, kind, experiment, Trained(trained)),
        entrant("oracle", "oracle", experiment),
    ]


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
