"""Whole runs with random models: exact resumption, refusals, statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from searchrl.data.questions import read_questions
from searchrl.data.storage import read_manifest
from searchrl.errors import InputError
from searchrl.models.local import LocalModel
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import OnStep, train
from tests.training_fixtures import (
    ParityExperiment,
    assert_bitwise_equal,
    save_model,
    search_r1_recipe,
    small_recipe,
)

pytestmark = pytest.mark.pipeline

REPOSITORY = Path(__file__).resolve().parents[1]
ALGORITHMS = {
    "grpo": ("learning.algorithm=grpo",),
    "ppo": (
        "learning.algorithm=ppo",
        "learning.lam=0.95",
        "learning.critic_warmup_steps=3",
        "learning.kl_coefficient=0.01",
        "learning.mini_batches=2",
    ),
}


class Killed(BaseException):
    """Stands for anything that ends a process."""


@pytest.fixture(scope="module")
def model(random_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(random_model, tmp_path_factory.mktemp("model"))


def run(recipe: Recipe, out: Path, resume: bool = False, on_step: OnStep | None = None) -> Path:
    experiment = ParityExperiment(recipe, out)
    return train(experiment, RunDirectory(out), resume, on_step or (lambda step, metrics: None))


def stop_after(last: int, error: BaseException) -> OnStep:
    def on_step(step: int, metrics: dict[str, float]) -> None:
        if step == last:
            raise error

    return on_step


def status(out: Path) -> str:
    return (out / "STATUS").read_text().strip()


def metrics_of(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def episodes_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    files = {}
    for file in sorted((out / "episodes").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        files[file.name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return files


def assert_same_run(one: Path, other: Path) -> None:
    assert metrics_of(one) == metrics_of(other)
    assert episodes_of(one) == episodes_of(other)
    files = sorted((one / "checkpoints").rglob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        twin = other / file.relative_to(one)
        assert_bitwise_equal(load_file(file), load_file(twin))


@pytest.fixture(scope="module")
def straight(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Recipe, Path]]:
    """An uninterrupted run of each algorithm, made once."""
    made: dict[str, tuple[Recipe, Path]] = {}

    def make(algorithm: str) -> tuple[Recipe, Path]:
        if algorithm not in made:
            recipe = small_recipe(model, *ALGORITHMS[algorithm])
            out = tmp_path_factory.mktemp(algorithm) / "run"
            run(recipe, out)
            made[algorithm] = recipe, out
        return made[algorithm]

    return make


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_leaves_what_a_run_directory_promises(
    algorithm: str, straight: Callable[[str], tuple[Recipe, Path]], model: Path
) -> None:
    recipe, out = straight(algorithm)
    assert status(out) == "success"
    assert load_recipe(str(out / "config.json")) == recipe
    rows = metrics_of(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"reward/mean", "reward/even", "grad_norm", "mismatch_kl"} <= rows[0].keys()
    assert 0 < sum(row["reward/mean"] for row in rows) / 4 < 1
    assert any(row["grad_norm"] > 0 for row in rows)
    if algorithm == "grpo":
        assert all(row["old_kl"] == 0.0 and row["clip_fraction"] == 0.0 for row in rows)
    assert all(abs(row["mismatch_kl"]) < 1e-6 for row in rows)
    assert sorted(episodes_of(out)) == [f"step_{step:06d}.jsonl" for step in (1, 2, 3, 4)]
    saved = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert saved == ["best", "final", "step_000002", "step_000004"]
    card = (out / "checkpoints" / "final" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| Steps | 4 of 4 |" in card
    assert f"| Training | {algorithm.upper()} |" in card
    means = [row["reward/mean"] for row in rows]
    best = read_manifest(out / "checkpoints" / "best")["about"]
    first, second = sum(means[:2]) / 2, sum(means[2:]) / 2
    assert (best["step"], best["score"]) == ((4, second) if second > first else (2, first))
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out / "checkpoints" / "final").state_dict()
    assert any(not before[name].equal(after[name]) for name in before)
    json.loads((out / "env.json").read_text())


@pytest.mark.parametrize(("algorithm", "last"), [("grpo", 1), ("grpo", 2), ("ppo", 2), ("ppo", 3)])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    algorithm: str, last: int, straight: Callable[[str], tuple[Recipe, Path]], tmp_path: Path
) -> None:
    recipe, expected = straight(algorithm)
    with pytest.raises(Killed):
        run(recipe, tmp_path, on_step=stop_after(last, Killed()))
    assert status(tmp_path) == "error"
    run(recipe, tmp_path, resume=True)
    assert status(tmp_path) == "success"
    assert_same_run(expected, tmp_path)


_PROCESS = """
import sys
from pathlib import Path
import torch
from searchrl.recipe_file import load_recipe
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.training_fixtures import ParityExperiment
torch.set_num_threads(1)
out = Path(sys.argv[2])
experiment = ParityExperiment(load_recipe(sys.argv[1]), out)
train(experiment, RunDirectory(out), False, lambda step, metrics: print(step, flush=True))
"""


@pytest.mark.pipeline
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_killed_by_the_system_equals_an_uninterrupted_one(
    algorithm: str, straight: Callable[[str], tuple[Recipe, Path]], tmp_path: Path
) -> None:
    recipe, expected = straight(algorithm)
    source, out = tmp_path / "recipe.json", tmp_path / "run"
    source.write_text(json.dumps(recipe.model_dump(mode="json")))
    command = [sys.executable, "-c", _PROCESS, str(source), str(out)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(3)] == ["1", "2", "3"]
        process.send_signal(signal.SIGKILL)
    assert status(out) == "started"
    run(recipe, out, resume=True)
    assert_same_run(expected, out)


def test_a_finished_run_can_be_made_longer_but_not_shorter(
    model: Path, straight: Callable[[str], tuple[Recipe, Path]], tmp_path: Path
) -> None:
    _, expected = straight("grpo")
    run(small_recipe(model, "run.steps=2"), tmp_path)
    run(small_recipe(model, "run.steps=4"), tmp_path, resume=True)
    assert_same_run(expected, tmp_path)
    before = metrics_of(tmp_path)
    with pytest.raises(InputError, match=r"has done 4 steps already; set run\.steps to 4 or more"):
        run(small_recipe(model, "run.steps=3"), tmp_path, resume=True)
    assert metrics_of(tmp_path) == before


def test_a_run_is_not_overwritten_without_resume(
    straight: Callable[[str], tuple[Recipe, Path]],
) -> None:
    recipe, out = straight("grpo")
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        run(recipe, out)
    assert status(out) == "success"


def test_resuming_with_another_recipe_names_what_differs(
    model: Path, straight: Callable[[str], tuple[Recipe, Path]]
) -> None:
    _, out = straight("grpo")
    other = small_recipe(model, "learning.learning_rate=0.5", "judge.model=x", "run.steps=9")
    with pytest.raises(InputError) as caught:
        run(other, out, resume=True)
    text = str(caught.value)
    assert "learning.learning_rate (0.003 there, 0.5 now)" in text
    assert "judge.model" in text
    assert "run.steps (" not in text
    assert status(out) == "success"


def test_a_resumed_run_may_change_its_length_and_its_guards(model: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with directory.open(small_recipe(model), resume=False):
        pass
    with directory.open(small_recipe(model, "run.steps=9", "guards.patience=7"), resume=True):
        pass
    assert load_recipe(str(directory.config)).guards.patience == 7


def test_resuming_with_other_questions_is_refused(model: Path, tmp_path: Path) -> None:
    world = tmp_path / "world"
    made = small_recipe(model)
    split = ParityExperiment(made, world).train
    lines = (world / "data" / "train" / "questions.jsonl").read_text().splitlines(keepends=True)
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(lines))
    values = made.model_dump(mode="json")
    values["data"]["train"] = {
        "kind": "files",
        "corpus": str(split.corpus),
        "questions": str(questions),
    }
    values["run"]["steps"] = 1
    recipe = Recipe.model_validate(values)
    run(recipe, tmp_path / "run")
    questions.write_text("".join(lines[:-1]))
    assert len(read_questions(questions)) == 23
    with pytest.raises(InputError, match=r"other training questions than the 23"):
        run(recipe, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(KeyboardInterrupt(), "cancelled"), (ValueError(), "error"), (SystemExit(1), "error")],
)
def test_status_says_how_a_run_ended(
    error: BaseException, expected: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(type(error)):
        run(small_recipe(model), tmp_path, on_step=stop_after(1, error))
    assert status(tmp_path) == expected


def test_a_recipe_whose_model_is_missing_leaves_no_run(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        run(small_recipe(model, f'searcher.model="{tmp_path}/absent"'), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


_HOLDER = """
import sys
from pathlib import Path
from searchrl.recipe_file import load_recipe
from searchrl.training.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).open(load_recipe("tiny-grpo"), resume=False):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_on_a_run_is_refused(model: Path, tmp_path: Path) -> None:
    recipe = small_recipe(model)
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for resume in (True, False):
            with pytest.raises(InputError, match=rf"process {holder.pid} on \S+ is writing"):
                run(recipe, tmp_path, resume)
        assert status(tmp_path) == "started"
        holder.communicate("\n")
    assert status(tmp_path) == "success"


def test_the_lock_of_a_process_that_is_gone_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on elsewhere\n")
    with RunDirectory(tmp_path).open(load_recipe("tiny-grpo"), resume=False):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_the_remains_of_a_run_without_its_config_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"without its config\.json"):
        run(small_recipe(model), tmp_path)


def test_a_damaged_config_is_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"name": ')
    with pytest.raises(InputError, match=r"config\.json: not a readable recipe"):
        run(small_recipe(model), tmp_path, resume=True)


def test_a_file_in_the_place_of_a_run_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run(small_recipe(model), tmp_path / "file")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_search_r1_is_trained_by_the_same_learner(
    algorithm: str, model: Path, tmp_path: Path
) -> None:
    recipe = search_r1_recipe(model, *ALGORITHMS[algorithm])
    run(recipe, tmp_path)
    rows = metrics_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2]
    assert any(row["grad_norm"] > 0 for row in rows)
    assert all(abs(row["mismatch_kl"]) < 1e-6 for row in rows)
    for episode in episodes_of(tmp_path)["step_000002.jsonl"]:
        assert episode["method"] == "search_r1"
        origins = [segment["origin"] for segment in episode["segments"]]
        # Two outputs of a model that knows no tag, with the note between them.
        assert origins == ["prompt", "model", "environment", "model"]
        trained = sum(s["tokens"] for s in episode["segments"] if s["origin"] == "model")
        assert 0 < trained <= 20
        assert episode["answer"] is None


@pytest.mark.parametrize("kind", ["exact_match", "f1", "sub_em", "search_r1_format"])
def test_the_rewards_of_search_r1_reach_the_metrics(kind: str, model: Path, tmp_path: Path) -> None:
    from searchrl.experiment import Experiment

    recipe = search_r1_recipe(model, f"reward.kind={kind}", "run.steps=1")
    train(Experiment(recipe, tmp_path), RunDirectory(tmp_path))
    [row] = metrics_of(tmp_path)
    assert {"reward/answered", "reward/em", "reward/f1"} <= row.keys()
    assert row["reward/mean"] == row["reward/answered"] == 0
    # Nothing was asked of the frozen generator, so nothing is cached.
    assert not (tmp_path / "rag_cache.jsonl").exists()


def test_a_query_rewriter_is_trained_too(model: Path, tmp_path: Path) -> None:
    from searchrl.experiment import Experiment

    values = small_recipe(model, "run.steps=1").model_dump(mode="json")
    values["agent"] = {"kind": "deep_retrieval", "style": "brief", "max_response_tokens": 10}
    values["reward"]["kind"] = "deep_retrieval"
    train(Experiment(Recipe.model_validate(values), tmp_path), RunDirectory(tmp_path))
    [row] = metrics_of(tmp_path)
    # A model that knows no tag writes no query and no form: -4 for each.
    assert (row["reward/mean"], row["reward/well_formed"]) == (-8, 0)


def test_a_reward_function_that_is_not_there_leaves_no_run(model: Path, tmp_path: Path) -> None:
    own = ("reward.kind=function", "reward.function=nowhere:found")
    with pytest.raises(InputError, match="'nowhere' cannot be imported"):
        run(small_recipe(model, *own), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_gain_beyond_rag_trains_on_what_naive_rag_does_not_solve(
    model: Path, tmp_path: Path
) -> None:
    from searchrl.experiment import Experiment

    recipe = small_recipe(
        model, "reward.kind=gain_beyond_rag", "run.steps=1", "data.train.questions=8"
    )
    train(Experiment(recipe, tmp_path), RunDirectory(tmp_path))
    assert len((tmp_path / "rag_cache.jsonl").read_text().splitlines()) == 8
    [row] = metrics_of(tmp_path)
    assert {"reward/accuracy", "reward/base", "reward/gain"} <= row.keys()
