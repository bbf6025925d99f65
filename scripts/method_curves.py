"""Held-out accuracy against training episodes, s3 and Search-R1, as in the s3 paper's claim.

    python -m scripts.method_curves --out runs/methods --figure docs/images/method-curves.svg

Both begin with the generator's weights, taught the format of the method by as many demonstrations
of the same quality, and are trained on the same questions with the same index, three searches of
three passages and as many episodes, three seeds each. Checkpoints along the way are evaluated on
held-out questions of another world. Each part is one command; finished parts are not run again.
Writes the figure and prints the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.parts import Part, call_all, run_all
from scripts.study import SAVE_EVERY, SEARCH_R1, Study, guarded, open_study, parser, with_model
from searchrl.recipe_file import load_recipe
from searchrl.reporting.figure import write_curves_svg

SEEDS = (0, 1, 2)
METHODS = ("s3", "search_r1")


def main() -> None:
    """Train and evaluate what is missing, then write the figure and print the table."""
    made = parser(__doc__)
    made.add_argument("--figure", type=Path, default=Path("docs/images/method-curves.svg"))
    made.add_argument("--algorithm", choices=("ppo", "grpo"), default="ppo", help="of both (ppo)")
    options = made.parse_args()
    studies = [open_study(options, seed) for seed in SEEDS]
    runs = {
        (method, study.seed): run_of(study, method, options.algorithm)
        for study in studies
        for method in METHODS
    }
    run_all(runs.values(), options.jobs)
    evaluations = [
        evaluation(study, method, options.algorithm, options.n)
        for study in studies
        for method in METHODS
    ]
    call_all(evaluations, options.jobs)
    curves = {
        f"{method.replace('_', '-')}, seed {study.seed}": curve(study, method, options.algorithm)
        for method in METHODS
        for study in studies
    }
    print(table(curves))
    write_curves_svg(
        options.figure,
        {name: [(at, row["accuracy"]) for at, row in rows] for name, rows in curves.items()},
        "Training episodes",
        "Accuracy on held-out questions",
    )


def run_of(study: Study, method: str, algorithm: str) -> Part:
    """The run whose checkpoints are evaluated."""
    return study.s3(algorithm) if method == "s3" else study.search_r1(algorithm)


def points(study: Study, method: str, algorithm: str) -> dict[int, Path | None]:
    """The searcher by the steps it was trained, every other checkpoint and the last."""
    run = run_of(study, method, algorithm)
    steps = [*range(SAVE_EVERY, study.steps, 2 * SAVE_EVERY), study.steps]
    trained = {step: run.out / "checkpoints" / f"step_{step:06d}" for step in steps}
    return {0: None, **trained}


def evaluation(study: Study, method: str, algorithm: str, n: int) -> tuple[str, ...]:
    """The command that evaluates all points of one curve."""
    at = {f"{method}:step{step}": path for step, path in points(study, method, algorithm).items()}
    name = _folder(method, algorithm)
    if method == "s3":
        return study.evaluation(name, f"tiny-{algorithm}", at, n, {})
    untrained = {**SEARCH_R1, **with_model(study.taught("search_r1"))}
    return study.evaluation(name, f"tiny-search-r1-{algorithm}", at, n, untrained)


def curve(study: Study, method: str, algorithm: str) -> list[tuple[float, Mapping[str, Any]]]:
    """The evaluated points by the episodes that training had made until then."""
    rollout = load_recipe(f"tiny-{algorithm}", study.overrides).rollout
    episodes = rollout.questions_per_step * rollout.group_size
    file = study.folder / _folder(method, algorithm) / "results.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["methods"]
    steps = points(study, method, algorithm)
    return [(float(step * episodes), rows[f"{method}:step{step}"]) for step in steps]


def table(curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]]) -> str:
    """A row a curve; accuracy in % with its 95 % interval."""
    episodes = [at for at, _ in next(iter(curves.values()))]
    lines = [
        f"| after ... episodes | {' | '.join(f'{at:,.0f}' for at in episodes)} |",
        f"|---{'|---:' * len(episodes)}|",
    ]
    lines += [
        f"| {name} | {' | '.join(cell(row) for _, row in rows)} |" for name, rows in curves.items()
    ]
    return "\n".join(lines)


def cell(row: Mapping[str, Any]) -> str:
    """Accuracy in % and its 95 % interval."""
    value, low, high = (100 * number for number in (row["accuracy"], *row["ci95"]))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _folder(method: str, algorithm: str) -> str:
    return f"curve-{method.replace('_', '-')}-{algorithm}"


if __name__ == "__main__":
    guarded(main)
