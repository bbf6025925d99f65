"""Does a recipe learn the same under this trainer and under TRL's? Seed by seed, on SynthWiki.

    python -m benchmarks.training.parity --seeds 0 1 2

Both have one recipe: the shipped searcher, its agent, Gain Beyond RAG, the learning rate, the KL
term and the clipping. Under TRL episodes are drawn by this engine from TRL's weights
(``searchrl.distributed.trl``), and TRL computes advantages, loss and steps. The two take the
questions in orders of their own and draw with seeds of their own, so no run repeats another.
Compared are how the mean reward of a step rises, and how many held-out questions are answered in
the end, on a world that shares no entity with the one of the training. Every run is a process of
its own on one thread, TRL's under ``--trl-python`` (``make .venv-trl/ready``). One that has ended
is not run again; other settings want another ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.training.measured import engine_environment, versions
from searchrl.cli.progress import progress
from searchrl.data.storage import write_json
from searchrl.distributed.process import last_error
from searchrl.errors import InputError, SearchRLError
from searchrl.evaluation.comparison import compare
from searchrl.experiment import Experiment
from searchrl.methods import Trained, entrant
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe

_TRAINERS = ("ours", "trl")
_CURVE = "curve.json"
_LAST = 3
"""Steps at the end of a run whose rewards are averaged."""
_MICRO_BATCH = 32
"""Most episodes of a pass of TRL's update, as in ``peers``."""


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
    try:
        if options.trainer:
            curve = _TRAIN[options.trainer](_recipe(options, options.seeds[0]), options.out)
            write_json(options.out / _CURVE, asdict(curve))
        else:
            _compare(options)
    except SearchRLError as error:
        sys.exit(f"error: {error}")


def _compare(options: argparse.Namespace) -> None:
    if versions(_python(options, "trl"), ("trl",)) is None:
        raise InputError(f"{options.trl_python}: no TRL there; make .venv-trl/ready")
    print("| seed | trainer | reward, all steps | last 3 | held out, % | CPU s |")
    print("|---:|---|---:|---:|---:|---:|")
    gaps = []
    for seed in options.seeds:
        accuracies = {}
        for name in _TRAINERS:
            out = options.out / f"{name}-{seed}"
            curve = _run(name, seed, out, options)
            accuracies[name] = _accuracy(_recipe(options, seed), Path(curve.model), out / "test")
            whole, last = (
                statistics.mean(part) for part in (curve.rewards, curve.rewards[-_LAST:])
            )
            print(
                f"| {seed} | {name} | {whole:.3f} | {last:.3f} "
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
    written, settings = out / _CURVE, out / "recipe.json"
    recipe = _recipe(options, seed).model_dump(mode="json")
    if settings.exists() and json.loads(settings.read_text()) != recipe:
        raise InputError(f"{settings}: a run with other settings; choose another --out")
    if not written.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(settings, recipe)
        command = [
            str(_python(options, name)), "-m", "benchmarks.training.parity", "--trainer", name,
            "--seeds", str(seed), "--recipe", options.recipe, "--out", str(out),
            *(part for each in options.set for part in ("--set", each)),
        ]  # fmt: skip
        log = out / "log"
        environment = {**os.environ, **engine_environment()}
        with log.open("wb") as told:
            ended = subprocess.run(command, stdout=told, stderr=told, env=environment)
        if ended.returncode:
            raise SearchRLError(f"{name}, seed {seed}: {last_error(log)}; see {log}")
    return Curve(**json.loads(written.read_text()))


def _python(options: argparse.Namespace, name: str) -> Path:
    # Absolute without following links: a link is what tells an environment from its base.
    return Path(options.trl_python if name == "trl" else sys.executable).absolute()


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
    episodes = arguments["per_device_train_batch_size"]
    micro_batch = math.gcd(episodes, _MICRO_BATCH)
    passes = episodes // micro_batch
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
                "per_device_train_batch_size": micro_batch,
                "gradient_accumulation_steps": passes,
                "steps_per_generation": passes * recipe.learning.mini_batches,
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
