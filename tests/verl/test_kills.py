"""Services and workers that die under a run of verl: no reward is made up, the run ends whole."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from searchrl.distributed.launch import train_on_verl
from searchrl.experiment import Experiment
from searchrl.recipe import Recipe
from searchrl.training.run_directory import RunDirectory
from tests.verl.served import Garbling, ray_workers, services
from tests.verl.verl_fixtures import metrics_of

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(1800)]


def test_kills_are_survived(tmp_path: Path) -> None:
    out = tmp_path / "run"
    attempts: dict[int, list[int]] = {}
    options = ("run.steps=4", "run.save_every=1", "verl.restarts=1", "verl.stall_seconds=60")
    with services(tmp_path, *options) as (retriever, generator, made):

        def hurt(step: int, metrics: dict[str, float]) -> None:
            attempts.setdefault(step, []).append(len(list((out / "logs").glob("verl-*.log"))))
            # Each in the midst of the next step, which has begun when this one is told of.
            if step == 1:
                retriever.kill()
                retriever.start()
            elif step == 2:
                generator.kill()
                generator.start()
            elif step == 3:
                [worker] = ray_workers(out, "AgentLoopWorker")
                os.kill(worker, signal.SIGKILL)

        train_on_verl(Experiment(made, out), RunDirectory(out), on_step=hurt)
    # The clients waited for both servers; the worker's step was done again by another attempt.
    assert attempts == {1: [1], 2: [1], 3: [1], 4: [2]}
    rows = metrics_of(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["episodes/failed"] for row in rows] == [0, 0, 0, 0]
    assert (out / "STATUS").read_text() == "success\n"


def test_failed_searches_are_counted_and_never_rewarded(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with services(tmp_path, "run.steps=2", "rollout.max_failed=0.9") as (retriever, _, made):
        asked = {question.query for question in Experiment(made, out).train.questions}
        with Garbling(retriever.port, asked) as garbling:
            values = made.model_dump(mode="json")
            values["retriever"]["url"] = garbling.url
            made = Recipe.model_validate(values)
            train_on_verl(Experiment(made, out), RunDirectory(out))
    for row in metrics_of(out):
        step = out / "episodes" / f"step_{row['step']:06d}.jsonl"
        episodes = [json.loads(line) for line in step.read_text().splitlines()]
        failed = [episode for episode in episodes if episode["end"] == "infrastructure"]
        assert 0 < row["episodes/failed"] == len(failed) < len(episodes) == 16
        assert all((episode["reward"] or {}).get("value") is None for episode in failed)
        rewards: dict[str, list[float]] = {}
        for episode in episodes:
            if episode not in failed:
                rewards.setdefault(episode["id"], []).append(episode["reward"]["value"])
        # One alone has no group to be compared with.
        learned = [value for group in rewards.values() if len(group) > 1 for value in group]
        assert row["reward/mean"] == pytest.approx(sum(learned) / len(learned))
