"""Does a recipe learn the same under this trainer and under TRL's? Seed by seed, on SynthWiki.

    python -m benchmarks.training.parity --seeds 0 1 2

Both have one recipe: the shipped searcher, its agent, Gain Beyond RAG, the learning rate, the KL
term and the clipping. Under TRL episodes are drawn by this engine from TRL's weights
(``searchrl.distributed.trl``), and TRL computes advantages, loss and steps. The two take the
questions in orders of their own and draw with seeds of their own, so no run repeats another.
Compared are how the mean reward of a step rises, and how many held-out questions are answered in
the end, on a world that shares no entity with the one of the training. Every run is a process of
its own on one thread, TRL's under ``--trl-python``; one that has ended is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.training.measured import engine_environment
from searchrl.cli.progress import progress
from searchrl.evaluation.comparison import compare
from searchrl.experiment import Experiment
from searchrl.methods import Trained, entrant
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe

_TRAINERS = ("ours", "trl")
_FIRST = 3
"""Steps at either end of a run whose rewards are averaged."""
_MICRO_BATCH = 32
"""Episodes of a pass of TRL's update: the size that is fastest on a CPU, see ``peers``."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What one run came to.

    Attributes:
        rewards: the mean of each step.
        model: where its last weights are.
        cpu_seconds: of the training, start-up left out.
    """

    rewards: list[float]
    model: str
    cpu_seconds: float


def main() -> None:
    """Print the table, or be one of its runs."""
    options = _parser().parse_args()
    if options.trainer:
        curve = _TRAIN[options.trainer](_recipe(options, options.seeds[0]), options.out)
        (options.out / "curve.json").write_text(json.dumps(asdict(curve)))
        return
    print("| seed | trainer | reward, first 3 steps | last 3 | held out, % | CPU s |")
    print("|---:|---|---:|---:|---:|---:|")
    gaps = []
    for seed in options.seeds:
        accuracies = {}
        for name in _TRAINERS:
            out = options.out / f"{name}-{seed}"
            curve = _run(name, seed, out, options)
            accuracies[name] = _accuracy(_recipe(options, seed), Path(curve.model), out / "test")
            first, last = curve.rewards[:_FIRST], curve.rewards[-_FIRST:]
            print(
                f"| {seed} | {name} | {statistics.mean(first):.3f} | {statistics.mean(last):.3f} "
                f"| {100 * accuracies[name]:.1f} | {curve.cpu_seconds:,.0f} |",
                flush=True,
            )
        gaps.append(100 * (accuracies["ours"] - accuracies["trl"]))
    told = ", ".join(f"{gap:+.1f}" for gap in gaps)
    print(f"\nheld out, ours less TRL's, in points: {told}; mean {statistics.mean(gaps):+.1f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="tiny-grpo")
    parser.add_argument("--set", action="append", default=[], help="key=value over the recipe")
    parser.add_argument("--out", type=Path, default=Path("build/parity"), help="kept for a rerun")
    parser.add_argument("--trl-python", type=Path, default=Path(".venv-trl/bin/python"))
    parser.add_argument("--trainer", choices=_TRAINERS, help=argparse.SUPPRESS)
    return parser


def _recipe(options: argparse.Namespace, seed: int) -> Recipe:
    return load_recipe(options.recipe, (f"seed={seed}", *options.set))


def _run(name: str, seed: int, out: Path, options: argparse.Namespace) -> Curve:
    """One run in a process of its own; one that was finished before is read."""
    written = out / "curve.json"
    if not written.exists():
        out.mkdir(parents=True, exist_ok=True)
        # Absolute without following links: a link is what tells an environment from its base.
        python = str(options.trl_python.absolute()) if name == "trl" else sys.executable
        command = [
            python, "-m", "benchmarks.training.parity", "--trainer", name, "--seeds", str(seed),
            "--recipe", options.recipe, "--out", str(out),
            *(part for each in options.set for part in ("--set", each)),
        ]  # fmt: skip
        with (out / "log").open("wb") as log:
            subprocess.run(
                command,
                check=True,
                stdout=log,
                stderr=log,
                env={**os.environ, **engine_environment()},
            )
    return Curve(**json.loads(written.read_text()))


def _train_ours(recipe: Recipe, out: Path) -> Curve:
    import torch

    from searchrl.training.run_directory import RunDirectory
    from searchrl.training.trainer import train

    torch.set_num_threads(1)
    rewards: list[float] = []
    started = time.process_time()
    trained = train(
        Experiment(recipe, out / "run"),
        RunDirectory(out / "run"),
        on_step=lambda _, metrics: rewards.append(metrics["reward/mean"]),
    )
    return Curve(rewards, str(trained), time.process_time() - started)


def _train_trl(recipe: Recipe, out: Path) -> Curve:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from searchrl.distributed.trl import SearchRollout, grpo_arguments, search_reward
    from searchrl.models.local import load_model

    torch.set_num_threads(1)
    started = time.process_time()
    rollout = SearchRollout(Experiment(recipe, out / "run"))
    local = load_model(recipe.searcher.model)
    arguments: dict[str, Any] = grpo_arguments(recipe)
    passes = arguments["per_device_train_batch_size"] // _MICRO_BATCH
    trainer = GRPOTrainer(
        local.model,
        search_reward,
        GRPOConfig(
            str(out / "trl"),
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            logging_steps=1,
            **arguments
            | {
                "per_device_train_batch_size": _MICRO_BATCH,
                "gradient_accumulation_steps": passes,
                "steps_per_generation": passes,
                "save_steps": recipe.run.steps,
            },
        ),
        train_dataset=Dataset.from_list(rollout.rows()),
        processing_class=local.tokenizer,
        rollout_func=rollout,
    )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    trainer.save_model(str(out / "model"))
    return Curve(rewards, str(out / "model"), time.process_time() - started)


_TRAIN = {"ours": _train_ours, "trl": _train_trl}


def _accuracy(recipe: Recipe, model: Path, out: Path) -> float:
    """The share of the recipe's held-out questions that its agent answers with these weights."""
    experiment = Experiment(recipe, out)
    kind = recipe.agent.kind
    tried = [entrant(kind, kind, experiment, Trained(str(model)))]
    comparison = compare(experiment, tried, out, progress, str(model))
    [summary] = comparison.average
    return summary.accuracy.mean


if __name__ == "__main__":
    main()
