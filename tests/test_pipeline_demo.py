"""The demo, shortened, with the shipped models: every stage, for PPO and for GRPO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from searchrl.data.jsonl import read_jsonl
from searchrl.reporting.metrics_log import read_metrics
from tests.command_line import good

pytestmark = pytest.mark.pipeline
SHORT = (
    *("--set", "run.steps=3"),
    *("--set", "rollout.questions_per_step=4"),
    *("--set", "run.save_every=2"),
    *("--set", "data.train.questions=100"),
    *("--set", "data.test.questions=60"),
    *("--set", "evaluation.questions=60"),
    *("--threads", "1"),
)


def demo(out: Path, recipe: str, *more: str) -> dict[str, Any]:
    good("demo", "--out", out, "--seed", "3", "--recipe", recipe, *SHORT, *more)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in row.items() if key != "seconds"}
        for name, row in summary["methods"].items()
    }


@pytest.mark.parametrize("recipe", ["tiny-grpo", "tiny-ppo"])
def test_demo_runs_every_stage(recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = demo(out, recipe)
    methods = summary["methods"]
    assert list(methods) == ["direct", "rag", "s3-untrained", "s3", "oracle"]
    assert all(row["n"] == 60 and row["failed"] == 0 for row in methods.values())
    assert methods["direct"]["accuracy"] <= 0.05
    assert methods["rag"]["accuracy"] < 0.35
    assert methods["oracle"]["accuracy"] > 0.75
    assert methods["oracle"]["gold_recall"]["mean"] == 1.0
    assert methods["s3"]["vs_rag"]["n"] == 60
    assert summary["training_episodes"] == 3 * 4 * 8
    assert set(summary["seconds"]) >= {"index", "precompute", "train", "evaluate", "total"}
    metrics = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert all(row["mismatch_kl"] < 1e-6 for row in metrics)
    assert (out / "STATUS").read_text().strip() == "success"
    AutoModelForCausalLM.from_pretrained(out / "checkpoints" / "final")
    report = (out / "report.html").read_text()
    assert "s3" in report
    assert report.count("<details") >= 10
    assert sum(1 for _ in read_jsonl(out / "episodes.jsonl")) == 5 * 60


def test_same_seed_same_table(tmp_path: Path) -> None:
    first, second = (demo(tmp_path / name, "tiny-grpo", "--set", "run.steps=2") for name in "ab")
    assert without_seconds(first) == without_seconds(second)
