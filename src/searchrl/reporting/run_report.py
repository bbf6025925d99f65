"""The report of a run directory, made from its files alone."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from searchrl.data.jsonl import read_jsonl
from searchrl.errors import InputError
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe
from searchrl.reporting.html import EPISODES_SHOWN, write_report
from searchrl.reporting.metrics_log import read_metrics


def write_run_report(run: Path) -> Path:
    """Write ``report.html`` of a run: curves, the last evaluation, ten of its episodes.

    Raises:
        InputError: ``run`` is not a run directory.
    """
    config_file, results, metrics = run / "config.json", run / "results.json", run / "metrics.jsonl"
    if not config_file.is_file():
        raise InputError(f"{run}: not a run directory (no config.json)")
    recipe = load_recipe(str(config_file))
    report = run / "report.html"
    write_report(
        report,
        title=recipe.name,
        facts=_facts(recipe, run),
        metrics=read_metrics(metrics) if metrics.is_file() else [],
        summary=_read_results(results) if results.is_file() else None,
        episodes=_episodes(run, recipe.agent.kind),
    )
    return report


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); evaluate again") from error
    if not isinstance(results, dict):
        raise InputError(f"{path}: not the results of an evaluation; evaluate again")
    return results


def _facts(recipe: Recipe, run: Path) -> dict[str, str]:
    rollout, status = recipe.rollout, run / "STATUS"
    episodes = recipe.run.steps * rollout.questions_per_step * rollout.group_size
    return {
        "Searcher": recipe.searcher.model,
        "Generator": recipe.generator.model,
        "Algorithm": recipe.learning.algorithm.upper(),
        "Reward": recipe.reward.kind.replace("_", " "),
        "Training episodes": f"{episodes:,}",
        "Seed": str(recipe.seed),
        "Status": status.read_text(encoding="utf-8").strip() if status.is_file() else "unknown",
    }


def _episodes(run: Path, method: str) -> list[dict[str, Any]]:
    """Evaluated episodes of a method where there are some, else those of the last training step."""
    evaluated = run / "episodes.jsonl"
    if evaluated.is_file():
        rows = (row for _, row in read_jsonl(evaluated) if row.get("method") == method)
        if shown := list(islice(rows, EPISODES_SHOWN)):
            return shown
    files = sorted((run / "episodes").glob("step_*.jsonl"))
    if not files:
        return []
    return [row for _, row in islice(read_jsonl(files[-1]), EPISODES_SHOWN)]
