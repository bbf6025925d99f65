"""verl trains a tiny searcher on processors: GRPO, the same run as in process, and PPO.

Rollouts are drawn by the in-process engine from the same seeds, so under GRPO the two runs are the
same run: every reward is equal, and gradients agree to rounding. PPO's critics begin differently.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from searchrl.distributed.launch import train_on_verl
from searchrl.experiment import Experiment
from searchrl.recipe import Recipe, load_recipe
from searchrl.training.checkpoint import searcher_path
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.verl_cpu.recipes import ENVIRONMENT, SETTINGS

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(1800)]
REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 8


def recipe(base: str, *overrides: str) -> Recipe:
    """Eight steps of 32 episodes on the same eight questions, with Gain Beyond RAG."""
    values = load_recipe(
        base,
        [
            "data.train.questions=12",
            "rollout.questions_per_step=8",
            "rollout.group_size=4",
            f"run.steps={STEPS}",
            f"run.save_every={STEPS}",
            "verl.gpus_per_node=1",
            "verl.agent_workers=1",
            "verl.stall_seconds=300",
            "verl.restarts=0",
            *overrides,
        ],
    ).model_dump(mode="json")
    values["verl"]["settings"] = dict(SETTINGS)
    return Recipe.model_validate(values)


@pytest.fixture(autouse=True)
def _processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rewards_of(run: Path) -> list[float]:
    return [row["reward/mean"] for row in metrics_of(run)]


def check_run(run: Path) -> None:
    rows = metrics_of(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    # What the rollout server drew is what the trainer computes: no re-tokenisation, same weights.
    assert all(abs(row["mismatch_kl"]) < 1e-5 for row in rows)
    assert all(row["episodes/failed"] == 0 for row in rows)
    rewards = rewards_of(run)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3
    assert searcher_path(run) == run / "checkpoints" / "final"
    assert (run / "STATUS").read_text() == "success\n"
    assert len((run / "episodes" / "step_000008.jsonl").read_text().splitlines()) == 32


def test_grpo_is_the_run_it_is_in_process(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    made = recipe("tiny-grpo")
    there, here = tmp_path / "verl", tmp_path / "here"
    train_on_verl(Experiment(made, there), RunDirectory(there))
    check_run(there)
    train(Experiment(made, here), RunDirectory(here))
    assert rewards_of(there) == pytest.approx(rewards_of(here), abs=1e-6)
    for one, other in zip(metrics_of(there), metrics_of(here), strict=True):
        for name in ("grad_norm", "policy_loss", "entropy", "episodes/invalid_turns"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), (one["step"], name)


def test_ppo_with_a_critic_learns(tmp_path: Path) -> None:
    out = tmp_path / "verl"
    made = recipe("tiny-ppo")
    train_on_verl(Experiment(made, out), RunDirectory(out))
    check_run(out)
    assert all(row["value_loss"] > 0 and row["critic_grad_norm"] > 0 for row in metrics_of(out))
