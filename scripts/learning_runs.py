"""The runs behind docs/experiments.md: s3 with PPO and GRPO, three seeds each, on held-out worlds.

    python -m scripts.learning_runs --out runs/learning --jobs 2

Each run is ``searchrl demo`` with its own worlds; finished ones are not run again. Writes a table
and the learning curves from the files of the runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from searchrl.reporting.figure import write_curves_svg
from searchrl.reporting.metrics_log import read_metrics

RECIPES = ("tiny-ppo", "tiny-grpo")
SEEDS = (0, 1, 2)


def main() -> None:
    """Run what is missing, then write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/learning-curves.svg"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    options = parser.parse_args()
    runs = [(recipe, seed) for recipe in RECIPES for seed in SEEDS]
    with ThreadPoolExecutor(options.jobs) as pool:
        paths = list(pool.map(lambda run: _run(run[0], run[1], options.out), runs))
    print(_table(runs, paths))
    curves = {
        f"{recipe.removeprefix('tiny-').upper()}, seed {seed}": _accuracy_curve(path)
        for (recipe, seed), path in zip(runs, paths, strict=True)
    }
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    write_curves_svg(options.figure, curves, "Training episodes", "Accuracy of training episodes")


def _run(recipe: str, seed: int, out: Path) -> Path:
    path = out / f"{recipe}-{seed}"
    if not (path / "summary.json").is_file():
        command = ["demo", "--recipe", recipe, "--seed", str(seed), "--out", str(path)]
        subprocess.run([sys.executable, "-m", "searchrl", *command, "--threads", "1"], check=True)
    return path


def _accuracy_curve(run: Path) -> list[tuple[float, float]]:
    rollout = json.loads((run / "config.json").read_text())["rollout"]
    episodes = rollout["questions_per_step"] * rollout["group_size"]
    return [
        (float(row["step"] * episodes), row["reward/accuracy"])
        for row in read_metrics(run / "metrics.jsonl")
    ]


def _table(runs: Sequence[tuple[str, int]], paths: Sequence[Path]) -> str:
    lines = [
        "| run | episodes | RAG | untrained | s3 | oracle | s3 / RAG | gain | s3 / oracle |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (recipe, seed), path in zip(runs, paths, strict=True):
        summary = json.loads((path / "summary.json").read_text())
        methods: Mapping[str, Any] = summary["methods"]
        rag, untrained, s3, oracle = (
            methods[name]["accuracy"] for name in ("rag", "s3-untrained", "s3", "oracle")
        )
        cells = [_percent(methods[name]) for name in ("rag", "s3-untrained", "s3", "oracle")]
        ratios = f"{s3 / rag:.1f} | {100 * (s3 - untrained):+.1f} | {100 * s3 / oracle:.0f} %"
        lines.append(
            f"| {recipe}, seed {seed} | {summary['training_episodes']:,} | {' | '.join(cells)} "
            f"| {ratios} |"
        )
    return "\n".join(lines)


def _percent(method: Mapping[str, Any]) -> str:
    low, high = method["ci95"]
    return f"{100 * method['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
