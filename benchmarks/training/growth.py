"""What a sample costs as its work grows: group, searches, passages, model.

    python -m benchmarks.training.growth

One number is moved at a time, from 32 episodes a step of 2 searches for 3 passages of 100 tokens,
in groups of 8, with 1 M weights. Every point is a process of its own, on one thread, with one
measured step after one of warm-up. Groups keep the number of episodes, so that larger ones share
fewer prompts. REINFORCE++ is what is learned with, since it knows groups of one; its update is
that of GRPO but for the advantages.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.training.engines.order import Order
from benchmarks.training.measured import Program, Run
from benchmarks.training.random_model import SIZES, write_model
from benchmarks.training.work import Work

_EPISODES = 32
_BASE = Work(
    "reinforce_plus_plus",
    questions=_EPISODES // 8,
    group=8,
    fewest_searches=2,
    most_searches=2,
    passages=3,
    passage=100,
)
_GROUPS = (1, 2, 4, 8, 16)
_TURNS = (1, 2, 3, 4)
_PASSAGES = (2, 4, 8, 12)
_MODELS = ("1m", "3m", "10m", "30m", "100m")


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement's work."""

    moved: str
    work: Work
    model: str


def points(model: str, models: tuple[str, ...], episodes: int) -> Iterator[Point]:
    """All of them, those of one moved number together."""
    base = replace(_BASE, questions=max(1, episodes // _BASE.group))
    for group in _GROUPS:
        questions = max(1, episodes // group)
        yield Point(f"group {group}", replace(base, group=group, questions=questions), model)
    for turns in _TURNS:
        # The last turn finishes; the others search.
        searches = replace(base, fewest_searches=turns - 1, most_searches=turns - 1)
        yield Point(f"{turns} turns", searches, model)
    for passages in _PASSAGES:
        yield Point(f"{passages} passages", replace(base, passages=passages), model)
    for size in models:
        yield Point(f"model {size}", base, size)


def main() -> None:
    """Measure all points and print the table as it grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SIZES, default="1m", help="where it is not moved")
    parser.add_argument("--models", default=",".join(_MODELS), help="that it is moved over")
    parser.add_argument("--episodes", type=int, default=_EPISODES, help="a step")
    parser.add_argument("--only", default="", help="points whose name holds this")
    parser.add_argument("--core", type=int, help="the processor that all stay on")
    options = parser.parse_args()
    print("| moved | tokens a sample | samples / CPU s | tokens / CPU s | rollout | peak MiB |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = tuple(options.models.split(","))
        for number, point in enumerate(points(options.model, models, options.episodes)):
            if options.only in point.moved:
                checkpoint = folder / point.model
                if not checkpoint.exists():
                    write_model(point.model, 0, "float32", checkpoint)
                order = Order(point.work, str(checkpoint), steps=2, seed=0, learning_rate=1e-4)
                run = _program().run(order, 1, folder / str(number), options.core)
                print(row(point, run), flush=True)


def _program() -> Program:
    return Program("ours", Path(sys.executable).absolute())


def row(point: Point, run: Run) -> str:
    """A line of the table."""
    counts = run.counts
    tokens = counts.prompt + counts.told + counts.said
    rollout = run.share("rollout") / (run.share("rollout") + run.share("update"))
    cells = [
        point.moved,
        f"{tokens / counts.samples:,.0f}",
        f"{run.samples_per_cpu:.2f}",
        f"{tokens / run.measured.cpu:,.0f}",
        f"{rollout:.0%}",
        f"{run.peak / 2**20:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
