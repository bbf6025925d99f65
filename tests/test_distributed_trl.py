"""The rollout function for TRL, called as its trainer calls it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from searchrl.distributed.trl import SearchRollout, grpo_arguments, search_reward
from searchrl.errors import InputError
from searchrl.experiment import Experiment
from searchrl.models.local import LocalModel, load_model
from searchrl.recipe_file import load_recipe
from tests.fakes import FailingRetriever, passages
from tests.training_fixtures import ParityExperiment, save_model, small_recipe


def trainer(model: LocalModel, step: int = 0, process: int = 0) -> Any:
    accelerator = SimpleNamespace(unwrap_model=lambda wrapped: wrapped, process_index=process)
    return SimpleNamespace(
        model=model.model,
        processing_class=model.tokenizer,
        accelerator=accelerator,
        state=SimpleNamespace(global_step=step),
    )


@pytest.fixture
def rollout(random_model: LocalModel, tmp_path: Path) -> SearchRollout:
    recipe = small_recipe(save_model(random_model, tmp_path / "model"))
    return SearchRollout(ParityExperiment(recipe, tmp_path / "run"))


def test_a_row_for_each_prompt(rollout: SearchRollout, random_model: LocalModel) -> None:
    prompts = [row["prompt"] for row in rollout.rows()[:2] for _ in range(2)]
    made = rollout(prompts, trainer(random_model))
    assert {len(values) for values in made.values()} == {4}
    for number in range(4):
        ids, mask = made["completion_ids"][number], made["env_mask"][number]
        assert len(ids) == len(mask) == len(made["logprobs"][number])
        assert mask[0] == mask[-1] == 1
        sampled = sum(token for token, own in zip(ids, mask, strict=True) if own)
        assert made["reward"][number] == float(sampled % 2 == 0)
    # Attempts at one question are drawn apart, and drawn again alike.
    assert made["completion_ids"][0] != made["completion_ids"][1]
    assert rollout(prompts, trainer(random_model)) == made
    assert rollout(prompts, trainer(random_model, step=1)) != made
    assert search_reward(prompts=prompts, **made) == made["reward"]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert rollout(chats, trainer(random_model)) == made


def test_a_failed_search_is_no_reward(rollout: SearchRollout, random_model: LocalModel) -> None:
    rollout._retriever = FailingRetriever(passages(3))
    [row] = rollout.rows()[:1]
    made = rollout([row["prompt"]], trainer(random_model))
    assert made["reward"] == [None]
    assert made["env_mask"] == [[0]]
    assert made["completion_ids"] == [[random_model.tokenizer.eos_token_id]]


@pytest.mark.pipeline
def test_gain_beyond_rag_is_scored_from_the_start(tmp_path: Path) -> None:
    sizes = ("data.train.size=200", "data.train.questions=8")
    recipe = load_recipe("tiny-grpo", sizes)
    assert recipe.reward.kind == "gain_beyond_rag"
    rollout = SearchRollout(Experiment(recipe, tmp_path / "run"))
    prompts = [row["prompt"] for row in rollout.rows()[:2]]
    made = rollout(prompts, trainer(load_model(recipe.searcher.model)))
    assert all(isinstance(reward, float) for reward in made["reward"])


def test_a_prompt_of_another_data_set_is_refused(
    rollout: SearchRollout, random_model: LocalModel
) -> None:
    with pytest.raises(InputError, match="'Who is it' is none of the recipe's"):
        rollout(["Who is it"], trainer(random_model))


def test_a_recipe_as_trl_arguments() -> None:
    recipe = load_recipe(
        "tiny-grpo", ["learning.mini_batches=2", "learning.epochs=2", "learning.warmup_steps=3"]
    )
    made = grpo_arguments(recipe, processes=2)
    assert made["per_device_train_batch_size"] * 2 * 2 == 16 * 8
    assert made["steps_per_generation"] == made["num_iterations"] == 2
    assert made["max_steps"] == 14 * 4
    assert made["warmup_steps"] == 12
    assert (made["epsilon"], made["scale_rewards"]) == (0.2, "group")


@pytest.mark.parametrize(
    ("base", "overrides", "complaint"),
    [
        ("tiny-ppo", "seed=0", 'learning.algorithm = "ppo"'),
        ("tiny-grpo", "learning.entropy_coefficient=0.1", "learning.entropy_coefficient"),
        ("tiny-grpo", "learning.mini_batches=3", "learning.mini_batches = 3"),
        ("tiny-grpo", "learning.mask_retrieved=false", "learning.mask_retrieved = false"),
        ("tiny-grpo", "lora.rank=4", "lora: TRL is given its adapter"),
        ("tiny-grpo", "learning.offload=true", "learning.offload"),
        ("tiny-grpo", "rollout.engine=vllm learning.importance_cap=2.0", 'engine = "vllm"'),
    ],
)
def test_what_trl_cannot_do_is_refused(base: str, overrides: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        grpo_arguments(load_recipe(base, overrides.split()))
