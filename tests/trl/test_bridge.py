"""TRL's GRPO trainer learns from our agents' episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from searchrl.distributed.trl import SearchRollout, grpo_arguments, search_reward
from searchrl.errors import InfrastructureError
from searchrl.experiment import Experiment
from searchrl.models.local import load_model
from searchrl.recipe_file import load_recipe

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]
OVERRIDES = (
    "data.train.size=200",
    "data.train.questions=4",
    "reward.kind=context_recall",
    "rollout.questions_per_step=4",
    "rollout.group_size=4",
    "run.steps=2",
)


class Kept(SearchRollout):
    """Keeps what it returned; searches for one question fail when it is told so."""

    fails = False

    def __call__(self, prompts: Any, trainer: Any) -> dict[str, list[Any]]:
        if self.fails:
            whole, broken = self._retriever, prompts[0]

            class Broken:
                async def search(self, queries: Any, k: int) -> Any:
                    if broken in queries:
                        raise InfrastructureError("retriever at example:2 did not answer")
                    return await whole.search(queries, k)

            self._retriever = Broken()
        self.returned = super().__call__(prompts, trainer)
        return self.returned


@pytest.mark.parametrize("fails", [False, True])
def test_a_searcher_is_trained(fails: bool, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe("tiny-grpo", OVERRIDES)
    rollout = Kept(Experiment(recipe, tmp_path / "run"))
    rollout.fails = fails
    local = load_model("tiny-searcher")
    before = {name: value.clone() for name, value in local.model.state_dict().items()}
    arguments = GRPOConfig(
        str(tmp_path / "out"),
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1,
        **grpo_arguments(recipe),
    )
    trainer = GRPOTrainer(
        local.model,
        search_reward,
        arguments,
        train_dataset=Dataset.from_list(rollout.rows()),
        processing_class=local.tokenizer,
        rollout_func=rollout,
    )
    trainer.train()
    rewards = rollout.returned["reward"]
    assert len(rewards) == 16
    assert (None in rewards) == fails
    scored = [reward for reward in rewards if reward is not None]
    logged = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 2
    assert logged[-1] == pytest.approx(sum(scored) / len(scored), abs=1e-5)
    for mask, ids in zip(
        rollout.returned["env_mask"], rollout.returned["completion_ids"], strict=True
    ):
        assert len(mask) == len(ids)
    after = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    assert any(not before[name].equal(after[name]) for name in before)
