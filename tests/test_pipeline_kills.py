"""Runs that are killed again and again end as if nothing had happened.

One helper process imports everything once and forks a child for each attempt. A child is killed
ahead of a random call of a model's layer, in a rollout or an update, or ends in the middle of a
save, ahead of a random call that brings something to the disk. Nothing is cleaned up either way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from searchrl.data.storage import verify_directory
from searchrl.models.local import LocalModel
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.training_fixtures import (
    ParityExperiment,
    assert_bitwise_equal,
    save_model,
    small_recipe,
)

pytestmark = pytest.mark.pipeline
REPOSITORY = Path(__file__).resolve().parents[1]
ALGORITHMS = {
    "grpo": (
        "learning.algorithm=grpo",
        "learning.kl_placement=loss",
        "learning.kl_coefficient=0.01",
        "learning.kl_target=0.001",
        "learning.kl_horizon=50",
        "learning.loss_average=episode",
        "learning.importance_cap=2.0",
        "rollout.refill_rounds=2",
    ),
    "ppo": (
        "learning.algorithm=ppo",
        "learning.lam=0.95",
        "learning.mini_batches=2",
        "learning.critic_warmup_steps=3",
        "learning.mask_truncated=true",
    ),
}
KILLS = 10

_DRIVER = """
import json, os, random, signal, sys
from pathlib import Path
import torch
from searchrl.recipe_file import load_recipe
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.training_fixtures import ParityExperiment

torch.set_num_threads(1)
recipe, folder, kills = load_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
draw = random.Random(sys.argv[4])


def attempt(out):
    os.dup2(2, 1)
    directory = RunDirectory(out)
    train(ParityExperiment(recipe, out), directory, directory.config.is_file())


def die_saving(count):
    left = [count]

    def ending(function):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return function(*arguments, **keywords)

        return call

    os.fsync = ending(os.fsync)
    Path.rename = ending(Path.rename)
    Path.replace = ending(Path.replace)
    Path.unlink = ending(Path.unlink)


def child(out, prepare=lambda: None):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prepare()
            attempt(out)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_computing(count):
    left = [count]

    def note(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.nn.modules.module.register_module_forward_pre_hook(note)


def steps_made(out):
    file = out / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.is_file() else 0


# Where a run outlives its attempt and is done, the next attempt begins another.
run, deaths = 0, []
while len(deaths) < kills:
    out = folder / str(run)
    saves, calls = draw.randrange(1, 40), draw.randrange(1, 3000)
    saving = len(deaths) % 2
    code = child(out, (lambda: die_saving(saves)) if saving else (lambda: die_computing(calls)))
    if code == 0:
        run += 1
    else:
        deaths.append([code, steps_made(out)])
print(json.dumps([deaths, child(folder / str(run))]))
"""


def table(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    assert table(one / "metrics.jsonl") == table(other / "metrics.jsonl")
    files = sorted(file.relative_to(one) for file in one.glob("episodes/*.jsonl"))
    files += sorted(file.relative_to(one) for file in one.rglob("checkpoints/**/*.safetensors"))
    assert len(files) > 8
    for file in files:
        if file.suffix == ".jsonl":
            assert table(one / file) == table(other / file), file
        else:
            assert_bitwise_equal(load_file(one / file), load_file(other / file))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_that_is_killed_at_random_points_equals_an_uninterrupted_one(
    algorithm: str, random_model: LocalModel, tmp_path: Path
) -> None:
    model = save_model(random_model, tmp_path / "model")
    length = ("run.steps=6", "run.save_every=1", "run.keep_checkpoints=2")
    recipe = small_recipe(model, *ALGORITHMS[algorithm], *length)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(ParityExperiment(recipe, straight), RunDirectory(straight))
    source = tmp_path / "recipe.json"
    source.write_text(json.dumps(recipe.model_dump(mode="json")))
    command = [sys.executable, "-c", _DRIVER, str(source), str(killed), str(KILLS), algorithm]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    deaths, last = json.loads(done.stdout)
    assert last == 0, done.stderr
    # Killed by signal 9, and ended with 9 in the middle of a save.
    assert {code for code, _ in deaths} == {-9, 9}, done.stderr
    assert len({step for _, step in deaths}) > 2, deaths
    for out in killed.iterdir():
        assert (out / "STATUS").read_text() == "success\n"
        assert_same_run(straight, out)
        for place in (out / "checkpoints").iterdir():
            assert not place.name.startswith("."), place
            verify_directory(place)
