"""The report of a run directory, made from its files alone."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from searchrl.data.jsonl import read_jsonl
from searchrl.errors import InputError
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
    config = json.loads(config_file.read_text(encoding="utf-8"))
    report = run / "report.html"
    write_report(
        report,
        title=config["name"],
        facts=_facts(config, run),
        metrics=read_metrics(metrics) if metrics.is_file() else [],
        summary=json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None,
        episodes=_episodes(run),
    )
    return report


def _facts(config: dict[str, Any], run: Path) -> dict[str, str]:
    rollout, training = config["rollout"], config["run"]
    episodes = training["steps"] * rollout["questions_per_step"] * rollout["group_size"]
    status = run / "STATUS"
    return {
        "Searcher": config["searcher"]["model"],
        "Generator": config["generator"]["model"],
        "Algorithm": config["learning"]["algorithm"].upper(),
        "Reward": config["reward"]["kind"].replace("_", " "),
        "Training episodes": f"{episodes:,}",
        "Seed": str(config["seed"]),
        "Status": status.read_text(encoding="utf-8").strip() if status.is_file() else "unknown",
    }


def _episodes(run: Path) -> list[dict[str, Any]]:
    """Evaluated s3 episodes where there are some, else those of the last training step."""
    evaluated = run / "episodes.jsonl"
    if evaluated.is_file():
        rows = (row for _, row in read_jsonl(evaluated) if row["method"] == "s3")
        return list(islice(rows, EPISODES_SHOWN))
    files = sorted((run / "episodes").glob("step_*.jsonl"))
    if not files:
        return []
    return [row for _, row in islice(read_jsonl(files[-1]), EPISODES_SHOWN)]
