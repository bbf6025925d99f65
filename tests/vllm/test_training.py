"""A searcher is trained by command on vLLM's rollouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import refused, searchrl

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]
SETTINGS = (
    "data.train.size=200",
    "data.train.questions=8",
    "reward.kind=context_recall",
    "rollout.questions_per_step=8",
    "rollout.group_size=4",
    "run.steps=3",
    "learning.importance_cap=2.0",
)


def trained(out: Path, engine: str, *more: str) -> list[dict[str, float]]:
    arguments = [f"--set={one}" for one in (*SETTINGS, f"rollout.engine={engine}", *more)]
    if out.is_dir():
        arguments.append("--resume")
    outcome = searchrl("train", "tiny-grpo", "--out", str(out), "--threads", "1", *arguments)
    assert outcome.code == 0, outcome.stderr
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def mean(rows: list[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def test_rewards_are_those_of_rollouts_in_process(tmp_path: Path) -> None:
    theirs, ours = trained(tmp_path / "vllm", "vllm"), trained(tmp_path / "native", "native")
    # 96 episodes each, worth 0 or 1, of the same questions: the difference has a standard error
    # of 0.07.
    assert mean(theirs, "reward/mean") == pytest.approx(mean(ours, "reward/mean"), abs=0.2)
    assert mean(theirs, "entropy") == pytest.approx(mean(ours, "entropy"), rel=0.3)
    for row in theirs:
        assert row["sync/mismatch"] < 1e-5
        assert abs(row["mismatch_kl"]) < 1e-8
        assert row["skipped_updates"] == 0
    assert "sync/mismatch" not in ours[0]
    # Each step was sampled with the weights of the step before.
    assert len({row["grad_norm"] for row in theirs}) == 3


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", "vllm", "run.save_every=1")
    out = tmp_path / "cut"
    trained(out, "vllm", "run.save_every=1", "run.steps=1")
    resumed = trained(out, "vllm", "run.save_every=1", "run.steps=3")
    for one, other in zip(whole, resumed, strict=True):
        assert one["reward/mean"] == other["reward/mean"]
        assert one["policy_loss"] == pytest.approx(other["policy_loss"], abs=1e-5)


def test_without_a_correction_it_is_refused(tmp_path: Path) -> None:
    arguments = ("--set=rollout.engine=vllm", "--out", str(tmp_path / "run"))
    assert "set learning.importance_cap" in refused("train", "tiny-grpo", *arguments)
