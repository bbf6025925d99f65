"""A run of verl followed to its end, with a program in its place that dies when it is told to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from searchrl.distributed.launch import latest_step, train_on_verl
from searchrl.distributed.process import last_error
from searchrl.distributed.verl_metrics import VerlLog, run_metrics
from searchrl.errors import InfrastructureError, InputError, UnstableError
from searchrl.experiment import Experiment
from searchrl.models.local import LocalModel
from searchrl.recipe import Recipe
from searchrl.training.run_directory import RunDirectory
from tests.training_fixtures import save_model, small_recipe

# Does what verl does to the disk: logs steps, keeps checkpoints, goes on from the newest. The file
# "deaths" says after which step each attempt dies; -1 is before anything was done, -2 before Ray
# was there.
_VERL = """
import json, os, sys
from pathlib import Path
settings = dict(a.lstrip("+").split("=", 1) for a in sys.argv[1:])
kept = Path(json.loads(settings["trainer.default_local_dir"]))
run = Path(json.loads(settings["data.searchrl.run"]))
noted = kept / "latest_checkpointed_iteration.txt"
start = int(noted.read_text()) if noted.is_file() else 0
deaths = run.parent / "deaths"
dies = [int(d) for d in deaths.read_text().split()]
deaths.write_text(" ".join(map(str, dies[1:])))
death = dies[0] if dies else 99
last = int(settings["trainer.total_training_steps"])
if death == -2:
    sys.exit("Exception: The current node timed out during startup. This could happen because")
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as log:
    for step in range(start + 1, last + 1):
        if death < step:
            sys.exit("RuntimeError: a GPU fell off")
        folder = run / "verl" / "episodes" / f"step_{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "000001.json").write_text(json.dumps({"id": f"{step}b"}))
        (folder / "000000.json").write_text(json.dumps({"id": f"{step}a"}))
        data = {"critic/score/mean": step / 10, "episodes/searches": 1.0}
        if (run.parent / "bfloat16").exists():
            data["rollout_corr/k3_kl"] = 0.5
        log.write(json.dumps({"step": step, "data": data}) + "\\n")
        log.flush()
        if step % int(settings["trainer.save_freq"]) == 0 or step == last:
            home = kept / f"global_step_{step}" / "actor" / "huggingface"
            home.mkdir(parents=True)
            (home / "config.json").write_text(json.dumps({"step": step}))
            noted.write_text(str(step))
"""


@pytest.fixture
def recipe(random_model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    package = tmp_path / "verl" / "trainer"
    package.mkdir(parents=True)
    (package / "main_ppo.py").write_text(_VERL)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr("searchrl.distributed.launch._POLL_SECONDS", 0.02)
    (tmp_path / "deaths").write_text("")
    model = save_model(random_model, tmp_path / "model")
    return small_recipe(model, "verl.gpus_per_node=1", "verl.restarts=1")


def train(recipe: Recipe, out: Path, resume: bool = False) -> list[int]:
    seen: list[int] = []
    final = train_on_verl(
        Experiment(recipe, out), RunDirectory(out), resume, None, lambda step, _: seen.append(step)
    )
    assert final == out / "checkpoints" / "final"
    return seen


def steps_of(out: Path) -> list[int]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_run_is_followed_and_brought_home(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(recipe, out) == [1, 2, 3, 4]
    assert steps_of(out) == [1, 2, 3, 4]
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    verdicts = {name: value for name, value in first.items() if name.startswith("guards/")}
    assert verdicts
    assert set(verdicts.values()) == {0}
    assert first == {"step": 1, "reward/mean": 0.1, "episodes/searches": 1.0} | verdicts
    assert json.loads((out / "checkpoints" / "final" / "config.json").read_text()) == {"step": 4}
    manifest = json.loads((out / "checkpoints" / "final" / "manifest.json").read_text())
    assert manifest["about"] == {"kind": "searcher", "step": 4}
    rows = (out / "episodes" / "step_000003.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == ["3a", "3b"]
    assert (out / "STATUS").read_text() == "success\n"
    assert json.loads((out / "config.json").read_text())["verl"]["gpus_per_node"] == 1


def test_a_run_that_dies_goes_on_from_its_last_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "deaths").write_text("3 2")
    assert train(recipe, out) == [1, 2, 3, 3, 4]
    assert steps_of(out) == [1, 2, 3, 4]
    assert sorted(path.name for path in (out / "logs").glob("verl-*.log")) == [
        "verl-1.log", "verl-2.log", "verl-3.log",
    ]  # fmt: skip


def test_a_run_that_gets_no_further_is_given_up_and_can_be_resumed(
    recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (tmp_path / "deaths").write_text("3 2 2")
    with pytest.raises(InfrastructureError, match=r"RuntimeError: a GPU fell off; see .*verl-3"):
        train(recipe, out)
    assert (out / "STATUS").read_text() == "error\n"
    assert latest_step(out / "verl" / "checkpoints") == 2
    assert train(recipe, out, resume=True) == [3, 4]
    assert steps_of(out) == [1, 2, 3, 4]


def test_a_guard_stops_a_run_and_judges_one_that_was_restarted(
    recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (tmp_path / "bfloat16").touch()
    (tmp_path / "deaths").write_text("2")
    with pytest.raises(UnstableError, match=r"step 3: rollouts and trainer differ by 0\.5 nats"):
        train(recipe, out)
    assert steps_of(out) == [1, 2, 3]
    assert (out / "STATUS").read_text() == "error\n"


def test_a_run_that_never_begins_is_the_settings_fault(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "deaths").write_text("-1")
    with pytest.raises(InputError, match="did not get to its first step: RuntimeError: a GPU"):
        train(recipe, tmp_path / "run")


def test_a_machine_too_busy_for_ray_is_asked_again(recipe: Recipe, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    deaths.write_text("-2")
    assert train(recipe, tmp_path / "run") == [1, 2, 3, 4]
    deaths.write_text("-2 -2")
    with pytest.raises(InfrastructureError, match="timed out during startup"):
        train(recipe, tmp_path / "other")


def test_a_line_of_the_log_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = VerlLog(path)
    assert list(log.read()) == []
    row = json.dumps({"step": 1, "data": {"critic/score/mean": 0.5}})
    path.write_text(row + "\n" + row[:9])
    assert list(log.read()) == [(1, {"reward/mean": 0.5})]
    with path.open("a") as handle:
        handle.write(row[9:] + "\n")
    assert list(log.read()) == [(1, {"reward/mean": 0.5})]
    assert list(log.read()) == []


def test_verls_numbers_by_our_names() -> None:
    values = {
        "critic/score/mean": 0.25,
        "timing_s/update_actor": 2.0,
        "timing_s/update_critic": 1.0,
        "reward/accuracy": 0.5,
        "training/table": {"a": 1},
        "perf/mfu/actor": 0.1,
    }
    assert run_metrics(values) == {
        "reward/mean": 0.25,
        "reward/accuracy": 0.5,
        "seconds/update": 3.0,
    }


def test_the_reason_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Error in step 3 of many\n  ray.exceptions.ActorDiedError: gone\nbye\n")
    assert last_error(log) == "ray.exceptions.ActorDiedError: gone"
    log.write_bytes(b"\xff nothing\n")
    assert last_error(log) == "no error in it"
