"""Recipes in verl's words: every key goes somewhere or is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import searchrl
from searchrl.data.questions import Question
from searchrl.distributed.dataset import QuestionSchedule
from searchrl.distributed.failure_rules import check_failures, groups_below, session_of
from searchrl.distributed.plugin_check import check_worker
from searchrl.distributed.schedule import read_schedule, write_schedule
from searchrl.distributed.translation import (
    FOR_OTHER_COMMANDS,
    READ_IN_PLACE,
    TRANSLATED,
    WATCHED,
    Place,
    Settings,
    command_line,
    translate,
)
from searchrl.distributed.translation import REFUSED as SECTIONS_REFUSED
from searchrl.errors import InfrastructureError, InputError
from searchrl.recipe import LocalSearcher, Recipe
from searchrl.recipe_file import load_recipe
from searchrl.training.rollout import questions_of_step
from tests.command_line import good, refused

ONE_GPU = "verl.gpus_per_node=1"
PLACE = Place(Path("/runs/one"), Path("/runs/one/logs/verl-1.jsonl"))


def settings(base: str = "tiny-ppo", *overrides: str) -> Settings:
    return translate(load_recipe(base, [ONE_GPU, *overrides]), PLACE)


def test_every_section_has_its_place() -> None:
    places = TRANSLATED | READ_IN_PLACE | WATCHED | FOR_OTHER_COMMANDS | SECTIONS_REFUSED
    assert places == set(Recipe.model_fields)
    assert not FOR_OTHER_COMMANDS & (TRANSLATED | READ_IN_PLACE)


# A value other than tiny-ppo's for every key of the sections that become settings of verl.
OTHER: dict[str, Any] = {
    "name": "other",
    "seed": 7,
    "searcher.kind": "http",
    "searcher.model": "tiny-generator",
    "searcher.device": "cuda:0",
    "searcher.dtype": "bfloat16",
    "learning.algorithm": "grpo",
    "learning.learning_rate": 0.5,
    "learning.warmup_steps": 3,
    "learning.critic_learning_rate": 0.5,
    "learning.critic_warmup_steps": 3,
    "learning.weight_decay": 0.5,
    "learning.clip_low": 0.3,
    "learning.clip_high": 0.3,
    "learning.value_clip": 0.3,
    "learning.gamma": 0.9,
    "learning.lam": 0.9,
    "learning.whiten_advantages": False,
    "learning.scale_by_deviation": False,
    "learning.kl_coefficient": 0.3,
    "learning.kl_placement": "loss",
    "learning.kl_estimator": "k2",
    "learning.entropy_coefficient": 0.3,
    "learning.epochs": 2,
    "learning.mini_batches": 2,
    "learning.max_grad_norm": 0.5,
    "learning.tokens_per_micro_batch": 4096,
    "learning.autocast": True,
    "learning.lone_episodes": True,
    "learning.gradient_checkpointing": True,
    "learning.offload": True,
    "learning.final_rate": 0.5,
    "learning.loss_average": "episode",
    "learning.mask_truncated": True,
    "learning.mask_retrieved": False,
    "learning.importance_cap": 3.0,
    "learning.kl_target": 0.1,
    "rollout.refill_rounds": 2,
    "rollout.drop_equal_groups": True,
    "rollout.engine": "vllm",
    "tracking.services": ["tensorboard"],
    "tracking.project": "other",
    "rollout.questions_per_step": 8,
    "rollout.group_size": 4,
    "rollout.temperature": 0.5,
    "rollout.max_failed": 0.5,
    "run.steps": 3,
    "run.save_every": 3,
    "run.keep_checkpoints": 3,
    "run.parallel": "fsdp",
    "verl.nodes": 2,
    "verl.gpus_per_node": 4,
    "verl.tensor_parallel": 2,
    "verl.sequence_parallel": 2,
    "verl.rollout_memory": 0.5,
    "verl.max_sequences": 8,
    "verl.offload": True,
    "verl.agent_workers": 2,
    "verl.stall_seconds": 60,
    "verl.settings": {"trainer.balance_batch": False},
}
LAUNCHER = {"verl.machine_seconds", "verl.restarts"}
WORKERS = {"run.keep_episodes", "searcher.thinking"}
OF_THE_OWN_ENGINE = {"searcher.cache_gib", "searcher.decoding"}
ONLY_WITH_REFUSED = {"learning.loss_constant", "learning.kl_horizon", "rollout.vllm"}


def _keys(section: str) -> Iterator[str]:
    for model in _models(Recipe.model_fields[section].annotation):
        yield from (f"{section}.{name}" for name in model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models(argument)


def test_the_list_of_keys_is_whole() -> None:
    expected = {f"searcher.{name}" for name in LocalSearcher.model_fields} | {"name", "seed"}
    for section in ("learning", "rollout", "run", "verl", "tracking"):
        expected |= set(_keys(section))
    known = OTHER.keys() | LAUNCHER | WORKERS | OF_THE_OWN_ENGINE | ONLY_WITH_REFUSED
    assert known == expected


REFUSED = {
    "searcher.kind",
    "searcher.dtype",
    "learning.whiten_advantages",
    "learning.lone_episodes",
    "learning.final_rate",
    "learning.loss_average",
    "learning.mask_truncated",
    "learning.mask_retrieved",
    "learning.kl_target",
    "rollout.refill_rounds",
    "rollout.drop_equal_groups",
    "rollout.engine",
    "run.parallel",
}
OF_GRPO = {
    "learning.scale_by_deviation",
    "learning.lone_episodes",
    "rollout.refill_rounds",
    "rollout.drop_equal_groups",
}
TWO_GPUS = "verl.gpus_per_node=2"


@pytest.mark.parametrize("key", OTHER)
def test_a_key_changes_a_setting_or_is_refused_by_name(key: str) -> None:
    base = load_recipe("tiny-grpo" if key in OF_GRPO else "tiny-ppo", [TWO_GPUS])
    values = base.model_dump(mode="json")
    *sections, name = key.split(".")
    (values[sections[0]] if sections else values)[name] = OTHER[key]
    if key == "searcher.kind":
        served = {"url": "http://127.0.0.1:1/v1", "model": "m", "tokenizer": "t"}
        values["searcher"] = {"kind": "http", **served}
    if key == "learning.lone_episodes":
        values["rollout"]["group_size"] = 1
    if key == "learning.algorithm":
        values["learning"]["kl_coefficient"] = 0
    if key == "rollout.engine":
        values["learning"]["importance_cap"] = 2.0
    changed = Recipe.model_validate(values)
    if key in REFUSED:
        with pytest.raises(InputError, match=re.escape(key)):
            translate(changed, PLACE)
    else:
        assert translate(changed, PLACE) != translate(base, PLACE)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["learning.mini_batches=3"], "learning.mini_batches = 3: .* divisor"),
        (["verl.gpus_per_node=3", "verl.nodes=1"], "does not spread over 3 GPUs"),
        (["verl.gpus_per_node=3", "verl.tensor_parallel=2"], "have to divide the 3 GPUs"),
        (["learning.tokens_per_micro_batch=1000"], "an episode can have 1420 tokens"),
        (["generator.device=cuda:0"], "generator.device = 'cuda:0': agent workers have no GPU"),
        (["judge.model=tiny-generator", "judge.device=cuda:0"], "judge.device"),
        (
            ["retriever.kind=dense", "retriever.encoder=e", "retriever.device=cuda"],
            "retriever.device",
        ),
        (["rerank.model=r", "rerank.device=cuda"], "rerank.device"),
        (["lora.rank=8"], "lora: adapters are trained in process"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        settings("tiny-ppo", *overrides)


def test_ppo_has_a_critic_and_grpo_has_none() -> None:
    ppo, grpo = settings("tiny-ppo"), settings("tiny-grpo")
    assert ppo["algorithm.adv_estimator"] == "gae"
    assert grpo["algorithm.adv_estimator"] == "grpo"
    assert "critic.optim.lr" in ppo
    assert not any(name.startswith("critic.") for name in grpo)
    sampler = "trainer.v1.sampler.sampler_kwargs.smallest_group"
    assert (ppo[sampler], grpo[sampler]) == (1, 2)


def test_kl_goes_where_the_recipe_places_it() -> None:
    reward = settings("tiny-ppo", "learning.kl_coefficient=0.1")
    loss = settings("tiny-ppo", "learning.kl_coefficient=0.1", "learning.kl_placement=loss")
    none = settings("tiny-ppo", "learning.kl_coefficient=0")
    names = ("algorithm.use_kl_in_reward", "actor_rollout_ref.actor.use_kl_loss")
    found = [tuple(made[name] for name in names) for made in (reward, loss, none)]
    assert found == [(True, False), (False, True), (False, False)]


def test_own_settings_have_the_last_word() -> None:
    values = load_recipe("tiny-grpo", [ONE_GPU]).model_dump(mode="json")
    values["verl"]["settings"] = {"actor_rollout_ref.rollout.name": "sglang"}
    made = translate(Recipe.model_validate(values), PLACE)
    assert made["actor_rollout_ref.rollout.name"] == "sglang"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "null"),
        (1e-06, "1e-06"),
        ("a b", '"a b"'),
        (["x", 1], '["x",1]'),
        ({"a": {"b": "c"}}, '{a:{b:"c"}}'),
    ],
)
def test_a_value_on_the_command_line(value: Any, text: str) -> None:
    assert command_line({"trainer.x": value}) == [f"trainer.x={text}"]


def test_what_is_not_in_verls_files_is_marked() -> None:
    assert command_line({"data.searchrl.run": "/r"}) == ['++data.searchrl.run="/r"']
    assert command_line({"++own.key": 1}) == ["++own.key=1"]


def test_the_schedule_is_the_in_process_order(tmp_path: Path) -> None:
    recipe = load_recipe("tiny-grpo", ["run.steps=5", "rollout.questions_per_step=3"])
    questions = [Question(f"q{n}", f"What {n}?", ("a",), hops=n % 3) for n in range(7)]
    write_schedule(tmp_path / "s.jsonl", recipe, questions)
    expected = [
        (step, question)
        for step in range(5)
        for question in questions_of_step(questions, step, 3, recipe.seed)
    ]
    assert read_schedule(tmp_path / "s.jsonl") == expected
    rows = QuestionSchedule(str(tmp_path / "s.jsonl"))
    assert len(rows) == 15
    assert [(row["step"], row["question"]["id"]) for row in map(rows.__getitem__, range(15))] == [
        (step, question.id) for step, question in expected
    ]
    assert [rows[n]["index"] for n in (0, 14)] == [0, 14]
    assert rows[4]["raw_prompt"] == [{"role": "user", "content": expected[4][1].text}]
    assert len(QuestionSchedule([str(tmp_path / "s.jsonl")], max_samples=1)) == 1


def test_the_rules_of_failure() -> None:
    assert session_of("a_b_3_0") == ("a_b", "3")
    sessions = {("g", "0"), ("g", "1"), ("h", "2")}
    assert groups_below(sessions, 2) == {"h"}
    assert groups_below(sessions, 1) == set()
    check_failures(2, 10, 0.2)
    with pytest.raises(InfrastructureError, match="3 of 10 episodes met a failed service"):
        check_failures(3, 10, 0.2)


def test_a_worker_without_the_plugin_is_named() -> None:
    good = {"host": "n1", "searchrl": searchrl.__version__, "problem": ""}
    check_worker(good)
    with pytest.raises(InputError, match=r"n1: the searchrl plugin is not registered .*\(No mod"):
        check_worker(good | {"problem": "No module named 'x'"})
    with pytest.raises(InputError, match=r"n1: searchrl 0\.0 there"):
        check_worker(good | {"searchrl": "0.0"})


def test_a_dry_run_prints_the_command_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "tiny-grpo", "--out", out, "--backend", "verl", "--dry-run"]
    shown = good(*arguments, "--set", ONE_GPU).stdout
    assert "-m verl.trainer.main_ppo" in shown
    assert f"export VERL_FILE_LOGGER_PATH={out}/logs/verl-1.jsonl" in shown
    made = good(*arguments, "--ray-address", "n1:6379", "--json", "--set", ONE_GPU).json
    assert made["environment"]["RAY_ADDRESS"] == "n1:6379"
    assert made["command"][3:] == command_line(made["settings"])
    assert not out.exists()


def test_options_of_verl_go_with_verl(tmp_path: Path) -> None:
    for option in (["--dry-run"], ["--ray-address", "a:1"]):
        complaint = refused("train", "tiny-grpo", "--out", tmp_path / "r", *option)
        assert f"{option[0]} goes with --backend verl" in complaint
