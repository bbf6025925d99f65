"""Runs with an adapter: killed and resumed, fine-tuned, and used by path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from searchrl.errors import InputError
from searchrl.models.local import LocalModel, load_model
from searchrl.recipe import Recipe
from searchrl.training.checkpoint import searcher_path
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import OnStep, train
from tests.command_line import good
from tests.training_fixtures import (
    ParityExperiment,
    assert_bitwise_equal,
    save_model,
    search_r1_recipe,
    small_recipe,
)

pytestmark = pytest.mark.pipeline
pytest.importorskip("peft")
LORA = ("lora.rank=4", "learning.learning_rate=0.02", "learning.gradient_checkpointing=true")
RUNS = {
    "grpo": ("learning.offload=true",),
    "ppo": (
        "learning.algorithm=ppo",
        "learning.kl_coefficient=0.01",
        "searcher.dtype=bfloat16",
        "learning.mini_batches=2",
    ),
}


@pytest.fixture(scope="module")
def model(random_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(random_model, tmp_path_factory.mktemp("model"))


def run(recipe: Recipe, out: Path, resume: bool = False, last: int | None = None) -> None:
    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == last:
            raise KeyboardInterrupt

    on_step: OnStep = stop
    train(ParityExperiment(recipe, out), RunDirectory(out), resume, on_step)


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_goes_on_bitwise_and_its_searcher_is_used_by_path(
    name: str, model: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(model, *LORA, *RUNS[name])
    run(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", last=3)
    # As a kill leaves it: what came after the step before last is gone.
    latest = tmp_path / "cut" / "checkpoints" / "step_000003"
    latest.rename(tmp_path / "gone")
    run(recipe, tmp_path / "cut", resume=True)
    files = sorted((tmp_path / "whole" / "checkpoints").rglob("*.safetensors"))
    assert {"adapter_model.safetensors", "model.safetensors"} <= {file.name for file in files}
    for file in files:
        twin = tmp_path / "cut" / file.relative_to(tmp_path / "whole")
        assert_bitwise_equal(load_file(file), load_file(twin))

    final = tmp_path / "whole" / "checkpoints" / "final"
    merged = AutoModelForCausalLM.from_pretrained(final)
    assert not torch.equal(
        merged.model.layers[0].mlp.up_proj.weight,
        AutoModelForCausalLM.from_pretrained(model).model.layers[0].mlp.up_proj.weight,
    )
    step = tmp_path / "whole" / "checkpoints" / "step_000004"
    for place in (tmp_path / "whole", final / "adapter", step):
        loaded = load_model(str(searcher_path(place)), dtype=recipe.searcher.dtype)
        assert_bitwise_equal(loaded.model.state_dict(), merged.state_dict())
    damaged = final / "adapter" / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(InputError, match="adapter_model"):
        searcher_path(final / "adapter")


def test_a_searcher_is_fine_tuned_with_an_adapter(model: Path, tmp_path: Path) -> None:
    recipe = search_r1_recipe(
        model, "lora.rank=4", "lora.dropout=0.1", "supervised.learning_rate=0.01"
    )
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    out = tmp_path / "tuned"
    good("sft", str(tmp_path / "recipe.json"), "--out", str(out), "--threads", "1")
    folder = searcher_path(out)
    merged, base = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, model))
    assert torch.equal(merged.model.embed_tokens.weight, base.model.embed_tokens.weight)
    loaded = load_model(str(folder / "adapter"))
    assert_bitwise_equal(loaded.model.state_dict(), merged.state_dict())
    assert not torch.equal(
        merged.model.layers[0].self_attn.q_proj.weight, base.model.layers[0].self_attn.q_proj.weight
    )
