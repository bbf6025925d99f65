"""verl trains a tiny searcher on processors: GRPO, the same run as in process, and PPO.

Rollouts are drawn by the in-process engine from the same seeds, so under GRPO the two runs are the
same run: every reward is equal, and gradients agree to rounding.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from searchrl.distributed.launch import train_on_verl
from searchrl.distributed.process import RAY_TOO_SLOW, last_error
from searchrl.experiment import Experiment
from searchrl.training.checkpoint import searcher_path
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.verl.verl_fixtures import metrics_of, recipe

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(540)]


def check_run(run: Path) -> None:
    rows = metrics_of(run)
    assert [row["step"] for row in rows] == list(range(1, 9))
    # What the rollout server drew is what the trainer computes: no re-tokenisation, same weights.
    assert all(abs(row["mismatch_kl"]) < 1e-5 for row in rows)
    assert all(row["episodes/failed"] == 0 for row in rows)
    rewards = [row["reward/mean"] for row in rows]
    assert sum(rewards[-3:]) > sum(rewards[:3])
    assert searcher_path(run) == run / "checkpoints" / "final"
    assert (run / "STATUS").read_text() == "success\n"
    *failed, _ = sorted((run / "logs").glob("verl-*.log"))
    assert all(RAY_TOO_SLOW in last_error(log) for log in failed)
    assert len((run / "episodes" / "step_000008.jsonl").read_text().splitlines()) == 16


def test_grpo_is_the_run_it_is_in_process(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    made = recipe("tiny-grpo")
    there, here = tmp_path / "verl", tmp_path / "here"
    train_on_verl(Experiment(made, there), RunDirectory(there))
    check_run(there)
    train(Experiment(made, here), RunDirectory(here))
    for one, other in zip(metrics_of(there), metrics_of(here), strict=True):
        for name in ("reward/mean", "grad_norm", "policy_loss", "episodes/invalid_turns"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), (one["step"], name)


def test_ppo_with_a_critic_learns(tmp_path: Path) -> None:
    out = tmp_path / "verl"
    made = recipe("tiny-ppo")
    train_on_verl(Experiment(made, out), RunDirectory(out))
    check_run(out)
    assert all(row["value_loss"] > 0 and row["critic_grad_norm"] > 0 for row in metrics_of(out))
