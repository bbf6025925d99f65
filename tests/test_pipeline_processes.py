"""Two processes under torchrun make the run that one makes, in either layout, and go on with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from searchrl.data.storage import verify_directory
from searchrl.models.local import LocalModel
from searchrl.recipe import Recipe
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.command_line import good, write_recipe
from tests.training_fixtures import ParityExperiment, assert_close, save_model, small_recipe

pytestmark = pytest.mark.pipeline
REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 2
LENGTH = (f"run.steps={STEPS}", "run.save_every=1", "run.keep_checkpoints=9")
RATE = ("learning.learning_rate=1e-4",)
ALGORITHMS = {
    "grpo": (
        "learning.algorithm=grpo",
        "learning.kl_placement=loss",
        "learning.kl_coefficient=0.01",
        "learning.kl_target=0.001",
        "learning.kl_horizon=50",
        "learning.max_grad_norm=1e9",
        "rollout.refill_rounds=1",
    ),
    "ppo": (
        "learning.algorithm=ppo",
        "learning.lam=0.95",
        "learning.kl_coefficient=0.01",
        "learning.mini_batches=2",
        "learning.tokens_per_micro_batch=600",
    ),
}
RUNS = [(algorithm, layout) for algorithm in ALGORITHMS for layout in ("ddp", "fsdp")]
RESUMED = [("grpo", "fsdp"), ("ppo", "fsdp"), ("ppo", "ddp")]

_DRIVER = """
import json, sys
from pathlib import Path
import torch
from searchrl.recipe import Recipe
from searchrl.training.parallel.processes import joined
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.training_fixtures import ParityExperiment

torch.set_num_threads(1)
with joined() as processes:
    assert processes.size == 2
    for out, resume, values in json.loads(Path(sys.argv[1]).read_text()):
        out, recipe = Path(out), Recipe.model_validate(values)
        # Worlds and indexes are made once, by whoever is asked first.
        data = ParityExperiment(recipe, out.parent / "worlds")
        train(data, RunDirectory(out), resume, processes=processes)
"""


def torchrun(*arguments: str | Path) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [sys.executable, *launcher, *map(str, arguments)]


@dataclass(frozen=True)
class Made:
    """The folder of all runs, and the recipe of each algorithm."""

    folder: Path
    recipes: dict[str, Recipe]

    def run(self, *names: str) -> Path:
        return self.folder / "-".join(names)

    def alone(self, out: Path, recipe: Recipe, resume: bool = False) -> Path:
        train(ParityExperiment(recipe, self.folder / "worlds"), RunDirectory(out), resume)
        return out


def longer(recipe: Recipe, layout: str | None = None) -> Recipe:
    run = recipe.run.model_copy(update={"steps": STEPS + 1, "parallel": layout})
    return recipe.model_copy(update={"run": run})


@pytest.fixture(scope="module")
def made(random_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Runs of one process and, in one launch, those of two and the first ones' next step."""
    folder = tmp_path_factory.mktemp("processes")
    model = save_model(random_model, folder / "model")
    recipes = {
        name: small_recipe(model, *keys, *LENGTH, *RATE) for name, keys in ALGORITHMS.items()
    }
    found = Made(folder, recipes)
    work: list[tuple[str, bool, Any]] = []
    for name, recipe in recipes.items():
        found.alone(found.run(name), recipe)
    for name, layout in RUNS:
        run = recipes[name].run.model_copy(update={"parallel": layout})
        values = recipes[name].model_copy(update={"run": run})
        work.append((str(found.run(name, layout)), False, values.model_dump(mode="json")))
    for name, layout in RESUMED:
        out = shutil.copytree(found.run(name), found.run(name, layout, "resumed"))
        values = longer(recipes[name], layout)
        work.append((str(out), True, values.model_dump(mode="json")))
    driver, plan = folder / "driver.py", folder / "work.json"
    driver.write_text(_DRIVER)
    plan.write_text(json.dumps(work))
    environment = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}"}
    command = torchrun(driver, plan)
    done = subprocess.run(
        command, env=_environment(environment), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, recipe in recipes.items():
        found.alone(found.run(name), longer(recipe), resume=True)
    return found


def _environment(values: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **values, "OMP_NUM_THREADS": "1"}


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def episodes(run: Path, step: int) -> list[dict[str, Any]]:
    text = (run / "episodes" / f"step_{step:06d}.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same_run(one: Path, other: Path, steps: int) -> None:
    """The same episodes, gradients and numbers, up to rounding; the same files."""
    assert (one / "STATUS").read_text() == (other / "STATUS").read_text() == "success\n"
    rows, others = metrics(one), metrics(other)
    assert len(rows) == len(others) == steps
    for row, its in zip(rows, others, strict=True):
        assert list(row) == list(its)
        assert row == pytest.approx(its, rel=1e-4, abs=1e-6)
    for step in range(1, steps + 1):
        assert episodes(one, step) == episodes(other, step)
    last = f"step_{steps:06d}"
    for place in (f"checkpoints/{last}", "checkpoints/final", "checkpoints/best"):
        verify_directory(one / place)
        files = sorted(file.name for file in (one / place).rglob("*") if file.is_file())
        assert files == sorted(file.name for file in (other / place).rglob("*") if file.is_file())
    assert_same_tensors(one / "checkpoints" / last, other / "checkpoints" / last, 1e-4)


def assert_same_tensors(one: Path, other: Path, tolerance: float) -> None:
    for file in sorted(one.rglob("*.safetensors")):
        mine, its = load_file(file), load_file(other / file.relative_to(one))
        if "optimizer" not in file.name:
            # A gradient near zero decides by rounding which way AdamW goes.
            assert mine.keys() == its.keys()
            far = [float((mine[k] - its[k]).abs().mean()) for k in mine]
            assert max(far) < 1e-6, file
            continue
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            assert_close(_of_kind(mine, kind), _of_kind(its, kind), tolerance)


def _of_kind(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if name.endswith(f".{kind}")}


@pytest.mark.parametrize(("name", "layout"), RUNS)
def test_two_processes_make_the_run_of_one(name: str, layout: str, made: Made) -> None:
    two, one = made.run(name, layout), made.run(name)
    assert metrics(two)[0] == pytest.approx(metrics(one)[0], rel=1e-5, abs=1e-6)
    first = Path("checkpoints") / "step_000001"
    # The moments of a first step are its gradients, scaled, and their squares; in PPO there are two
    # steps by then, with gradients cut to a norm that was rounded.
    assert_same_tensors(two / first, one / first, 2e-6 if name == "grpo" else 1e-4)
    assert len(metrics(two)) == STEPS
    assert [episodes(two, n) for n in (1, 2)] == [episodes(one, n) for n in (1, 2)]
    assert json.loads((two / "env.json").read_text())["processes"] == 2


@pytest.mark.parametrize(("name", "layout"), RESUMED)
def test_two_processes_go_on_with_the_run_of_one(name: str, layout: str, made: Made) -> None:
    assert_same_run(made.run(name, layout, "resumed"), made.run(name), STEPS + 1)


@pytest.mark.parametrize(("name", "layout"), [("grpo", "ddp"), ("ppo", "fsdp")])
def test_one_process_goes_on_with_the_run_of_two(name: str, layout: str, made: Made) -> None:
    out = shutil.copytree(made.run(name, layout), made.run(name, layout, "alone"))
    made.alone(out, longer(made.recipes[name]), resume=True)
    assert_same_run(out, made.run(name), STEPS + 1)


def test_a_signal_to_torchrun_saves_once_and_one_process_goes_on(
    random_model: LocalModel, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", save_model(random_model, tmp_path / "model"))
    out = tmp_path / "run"
    settings = ("--set", "run.save_every=1000", "--set", 'reward.kind="context_recall"')
    command = torchrun(
        "-m", "searchrl", "train", recipe, "--out", out, *settings, "--set", "run.steps=1000"
    )
    with subprocess.Popen(
        command, env=_environment({}), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    ) as running:
        while not (out / "metrics.jsonl").is_file():
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=120)
    assert running.returncode != 0
    done = len(metrics(out))
    assert told.count(f"step {done} is saved; --resume goes on from it") == 1, told
    assert told.count("cancelled\n") == 1
    assert (out / "STATUS").read_text() == "cancelled\n"
    assert [place.name for place in (out / "checkpoints").iterdir()] == [f"step_{done:06d}"]
    good("train", recipe, "--out", out, *settings, "--set", f"run.steps={done + 1}", "--resume")
    assert len(metrics(out)) == done + 1
