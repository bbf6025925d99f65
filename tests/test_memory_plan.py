"""Memory formulas against what tiny models really hold, and the plan of a recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from searchrl.cli import machine
from searchrl.errors import InputError
from searchrl.memory_plan import Part, memory_plan, needed_bytes
from searchrl.models.adapters import add_adapter
from searchrl.models.options import LoraOptions
from searchrl.models.packed_attention import TreeAttention
from searchrl.models.packed_blocks import run_packed
from searchrl.models.shape import Shape, read_shape, shape_of
from searchrl.recipe_file import load_recipe
from searchrl.training.batch import TokenBatch
from searchrl.training.memory import (
    Form,
    activation_bytes,
    adamw_bytes,
    cache_bytes,
    factor_weights,
    head_bytes,
)
from searchrl.training.networks import Critic, token_logprobs
from searchrl.training.recomputation import recompute_blocks, recomputing
from tests.command_line import refused, searchrl
from tests.training_fixtures import episode

SIZES = {
    "vocab_size": 60,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MODELS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=24)),
    "qwen3, tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)),
    "qwen3, biased": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, attention_bias=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, biased": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)
    ),
}


def shape(model: PreTrainedModel) -> Shape:
    return shape_of(model.config.to_dict(), "config.json")


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def kept_for_backward(model: torch.nn.Module, call: Any) -> int:
    """Bytes that a forward pass keeps, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            held[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = call()
    assert result is not None
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_counted_exactly(name: str) -> None:
    model = MODELS[name]()
    assert shape(model).weights == count(model)
    assert shape(model).trunk + SIZES["hidden_size"] == count(Critic(model))


def packed(model: PreTrainedModel) -> TokenBatch:
    episodes = [episode(n, 1.0, (("prompt", 60), ("model", 40))) for n in range(4)]
    return TokenBatch.of(episodes, model.device)


def activations(model: PreTrainedModel, form: Form, checkpointed: bool = False) -> int:
    """Bytes that a pass of the model's trunk keeps where every token's state is wanted."""
    trunk, tree = Critic(model).trunk, packed(model).tree
    tokens, positions = torch.from_numpy(tree.token_ids), torch.from_numpy(tree.positions)
    if checkpointed:
        recompute_blocks(trunk)

    def call() -> Any:
        attention = TreeAttention(tree, model.device)
        with (
            recomputing(trunk),
            torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"),
        ):
            return run_packed(trunk, tokens, positions, attention)

    return kept_for_backward(trunk, call)


TOKENS = 400


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize(
    "name",
    ["qwen3", *(pytest.param(name, marks=pytest.mark.pipeline) for name in ("qwen2", "llama"))],
)
def test_activations_are_what_is_kept_for_the_backward_pass(name: str, form: Form) -> None:
    model = MODELS[name]()
    if form == "bfloat16":
        model = model.to(torch.bfloat16)
    kept = activations(model, form)
    assert activation_bytes(shape(model), TOKENS, form) == pytest.approx(kept, rel=0.03)


@pytest.mark.pipeline
@pytest.mark.parametrize("form", get_args(Form))
def test_checkpointed_blocks_keep_their_inputs_and_one_block_passes_by(form: Form) -> None:
    model = MODELS["qwen3"]()
    if form == "bfloat16":
        model = model.to(torch.bfloat16)
    inputs = activations(model, form, checkpointed=True)
    a_block = activations(model, form) / SIZES["num_hidden_layers"]
    found = activation_bytes(shape(model), TOKENS, form, checkpointed=True)
    assert found == pytest.approx(inputs + a_block, rel=0.1)
    assert found < activation_bytes(shape(model), TOKENS, form) / 2


def test_an_adapter_keeps_less_than_it_is_counted_with() -> None:
    model, lora = MODELS["qwen3"](), LoraOptions(rank=8, targets=("q_proj", "down_proj"))
    whole = activation_bytes(shape(model), TOKENS, "float32")
    add_adapter(model, lora, "base", seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert factor_weights(shape(model), lora) == trained
    assert 0.4 * whole < activations(model, "float32") < whole


def test_an_adapter_on_all_matrices_is_counted_exactly() -> None:
    model = MODELS["qwen3"]()
    add_adapter(model, LoraOptions(rank=3), "base", seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert factor_weights(shape(model), LoraOptions(rank=3)) == trained


def test_the_head_needs_twice_what_it_keeps() -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES | {"vocab_size": 2000, "num_hidden_layers": 1}))
    critic, batch = Critic(model), packed(model)
    whole = kept_for_backward(model, lambda: token_logprobs(model, batch, 0.7))
    trunk = kept_for_backward(critic, lambda: critic(batch))
    assert whole - trunk <= head_bytes(shape(model), 160) <= 2.2 * (whole - trunk)


def test_a_cache_is_as_large_as_its_keys_and_values() -> None:
    model, cache = MODELS["qwen3"](), DynamicCache()
    with torch.no_grad():
        model.model(input_ids=torch.zeros(3, 17, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(shape(model), 3 * 17, 4) == held


def test_the_optimizer_holds_two_moments() -> None:
    model = MODELS["qwen3, tied"]()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    moments = [s[k].nbytes for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    assert adamw_bytes(shape(model).weights) == sum(moments)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; memory is known for qwen2, qwen3"),
        ({"hidden_size": None}, "hidden_size is None; expected a positive integer"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        shape_of({"model_type": "llama", **SIZES} | change, "config.json")


def test_a_shape_is_read_from_a_shipped_model_or_a_directory(tmp_path: Path) -> None:
    assert read_shape("tiny-searcher").hidden == 192
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    assert read_shape(str(tmp_path)).vocabulary == 60
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not a readable model configuration"):
        read_shape(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="not a readable model configuration"):
        read_shape(str(tmp_path))


def test_a_model_that_only_a_hub_has_is_one_line_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: Any) -> None:
        raise OSError("no\nroute")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(InputError, match=r"'some/model': .*\(no route\); name a directory"):
        read_shape("some/model")


def plan(name: str, *overrides: str) -> dict[str, Part]:
    return {part.name: part for part in memory_plan(load_recipe(name, overrides))}


def test_a_plan_has_the_parts_that_its_algorithm_needs() -> None:
    grpo, ppo = plan("tiny-grpo", "learning.kl_coefficient=0"), plan("tiny-ppo")
    assert ppo.keys() - grpo.keys() == {"critic, weights", "reference, weights"}
    weights = ppo["searcher, weights"].bytes
    critic = ppo["critic, weights"].bytes
    assert weights == 4 * read_shape("tiny-searcher").weights
    assert critic == 4 * (read_shape("tiny-searcher").trunk + 192)
    assert ppo["gradients"].bytes == weights + critic
    assert ppo["optimizer"].bytes == 2 * (weights + critic)
    assert grpo["gradients"].bytes == weights
    assert grpo["index"] == Part("index", "cpu", None, "not built yet")


def test_a_plan_of_an_adapter_has_one_copy_of_the_weights() -> None:
    found, whole = plan("tiny-ppo", "lora.rank=8"), read_shape("tiny-searcher")
    assert not {"critic, weights", "reference, weights"} & found.keys()
    factors = factor_weights(whole, LoraOptions(rank=8))
    trained = 2 * factors + whole.hidden
    assert found["searcher, weights"].bytes == 4 * whole.weights
    assert found["adapters"].bytes == found["gradients"].bytes == 4 * trained
    assert found["optimizer"].bytes == 8 * trained


def test_a_plan_puts_what_is_offloaded_on_the_cpu() -> None:
    own = ("searcher.device=cuda:0", "searcher.dtype=bfloat16", "learning.offload=true")
    found, whole = plan("tiny-ppo", *own), read_shape("tiny-searcher")
    trained = whole.weights + whole.trunk + whole.hidden
    assert (found["optimizer"].device, found["optimizer"].bytes) == ("cpu", 12 * trained)
    assert (found["gradients"].device, found["gradients"].bytes) == ("cuda:0", 2 * trained)
    assert found["critic, weights"].device == found["reference, weights"].device == "cpu"
    at_work = found["weights at work"]
    assert (at_work.device, at_work.phase) == ("cuda:0", "update")
    assert at_work.bytes == max(2 * whole.weights, 2 * whole.trunk + 4 * whole.hidden)
    stays = plan("tiny-ppo", *own[:2])
    assert stays["optimizer"] == replace(found["optimizer"], device="cuda:0")


def test_rollouts_and_updates_take_turns() -> None:
    parts = [
        Part("a", "cpu", 5),
        Part("b", "cpu", 7, phase="rollouts"),
        Part("c", "cpu", 4, phase="update"),
        Part("d", "cpu", 2, phase="update"),
        Part("e", "cuda:0", 9),
        Part("f", "cpu", None),
    ]
    assert (needed_bytes(parts, "cpu"), needed_bytes(parts, "cuda:0")) == (12, 9)


def test_a_generator_that_no_reward_asks_is_not_counted() -> None:
    assert "generator, weights" in plan("tiny-grpo")
    assert "generator, weights" not in plan("tiny-search-r1-grpo")
    assert "generator, weights" not in plan("tiny-grpo", "reward.kind=context_recall")


def test_keys_and_values_stay_within_the_decoder_s_budget() -> None:
    found = plan("tiny-grpo", "searcher.cache_gib=0.01", "rollout.questions_per_step=1000")
    room = round(0.01 * 2**30)
    assert found["searcher, key-value cache"].bytes == found["searcher, prefix cache"].bytes == room
    with_less = plan("tiny-grpo", "searcher.cache_gib=0.000001")["searcher, key-value cache"]
    assert with_less.bytes == cache_bytes(read_shape("tiny-searcher"), 1420, 4)


def test_a_plan_follows_its_recipe(tmp_path: Path) -> None:
    base = plan("tiny-grpo")

    def part(name: str, *overrides: str) -> int:
        found = plan("tiny-grpo", *overrides)[name].bytes
        assert found is not None
        return found

    def before(name: str) -> int:
        found = base[name].bytes
        assert found is not None
        return found

    half = ("generator.dtype=bfloat16",)
    assert part("generator, weights", *half) == before("generator, weights") // 2
    whole, half_of_it = (
        part("activations", f"learning.tokens_per_micro_batch={n}") for n in (8192, 4096)
    )
    assert half_of_it == pytest.approx(whole / 2, rel=0.01)
    fewer = part("searcher, key-value cache", "rollout.questions_per_step=8")
    assert fewer == before("searcher, key-value cache") / 2
    served = plan("tiny-grpo", 'generator={kind="http", url="http://h/v1", model="m"}')
    assert not [name for name in served if name.startswith("generator")]
    judge = plan("tiny-grpo", "judge.model=tiny-generator")["judge, weights"]
    assert "judge, weights" not in plan("tiny-search-r1-grpo", "judge.model=tiny-generator")
    assert judge.bytes == before("generator, weights")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "postings").write_bytes(b"x" * 77)
    files = f'data.train={{kind="files", corpus="c", questions="q", index="{tmp_path}/index"}}'
    assert part("index", files) == 77


def test_vllm_has_a_copy_of_the_weights_and_caches_of_its_own() -> None:
    wanted = ("rollout.engine=vllm", "learning.importance_cap=2.0", "rollout.vllm.dtype=bfloat16")
    native, theirs = plan("tiny-grpo"), plan("tiny-grpo", *wanted)
    weights = native["searcher, weights"].bytes
    assert weights is not None
    assert "searcher, key-value cache" not in theirs
    assert theirs["vLLM, weights"].bytes == weights // 2
    assert theirs["vLLM, key-value cache"].bytes == 1 << 30
    on_gpu = plan("tiny-grpo", *wanted, "searcher.device=cuda")["vLLM, key-value cache"]
    assert (on_gpu.device, on_gpu.bytes) == ("cuda", None)
    assert "rollout.vllm.memory_share = 0.3 of the GPU" in on_gpu.note


def test_a_micro_batch_holds_an_episode_at_least_and_a_step_at_most() -> None:
    tiny = plan("tiny-grpo", "learning.tokens_per_micro_batch=1")["activations"]
    assert tiny.note == "a micro-batch of 1,420 tokens"
    huge = plan("tiny-grpo", "learning.tokens_per_micro_batch=1000000000")["activations"]
    assert huge.note == f"a micro-batch of {128 * 1420:,} tokens"


class TestCommand:
    def free(self, monkeypatch: pytest.MonkeyPatch, amount: int | None) -> None:
        monkeypatch.setattr(machine, "free_memory", lambda device: amount)

    def test_what_fits_ends_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free(monkeypatch, 64 << 30)
        outcome = searchrl("doctor", "--recipe", "tiny-ppo")
        assert outcome.code == 0
        lines = outcome.stdout.splitlines()
        assert lines[0].split() == ["searcher,", "weights", "cpu", "always", "7.4", "MiB",
                                    "1,944,128", "weights"]  # fmt: skip
        assert lines[-1].startswith("cpu: needs ")
        assert lines[-1].endswith(" GiB, 64.0 GiB are free; fits")

    def test_what_does_not_fit_ends_with_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free(monkeypatch, 1 << 30)
        outcome = searchrl("doctor", "--recipe", "tiny-ppo", "--json")
        assert outcome.code == 1
        assert outcome.json["fits"] is False
        [device] = outcome.json["devices"]
        assert (device["device"], device["free_bytes"]) == ("cpu", 1 << 30)
        parts = [
            Part(**part, name=name) for part in outcome.json["parts"] if (name := part.pop("part"))
        ]
        assert device["needed_bytes"] == needed_bytes(parts, "cpu") > 1 << 30

    def test_another_machine_s_memory_can_be_assumed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free(monkeypatch, None)
        call = ("doctor", "--recipe", "tiny-ppo", "--set", "searcher.device=cuda:0", "--json")
        outcome = searchrl(*call, "--gpu", "80", "--memory", "64")
        assert outcome.code == 0
        frees = {device["device"]: device["free_bytes"] for device in outcome.json["devices"]}
        assert frees == {"cuda:0": 80 << 30, "cpu": 64 << 30}
        small = searchrl(*call, "--gpu", "1", "--memory", "64")
        assert (small.code, small.json["fits"]) == (1, False)

    def test_a_device_that_is_not_there_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free(monkeypatch, None)
        outcome = searchrl("doctor", "--recipe", "tiny-ppo", "--set", "searcher.device=cuda:7")
        assert outcome.code == 1
        assert "cuda:7: needs " in outcome.stdout
        assert "this machine has no such device" in outcome.stdout

    def test_a_served_searcher_is_refused(self) -> None:
        served = 'searcher={kind="http", url="http://h", model="m", tokenizer="t"}'
        assert "not trained here" in refused("doctor", "--recipe", "tiny-grpo", "--set", served)


class TestFreeMemory:
    def test_a_container_s_limit_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "_CONTROL_GROUP", tmp_path)
        whole = machine.free_memory("cpu")
        assert whole is not None
        assert whole > 0
        (tmp_path / "memory.max").write_text("max\n")
        assert machine._container_memory() > whole
        (tmp_path / "memory.max").write_text("5000\n")
        (tmp_path / "memory.current").write_text("2000\n")
        assert machine.free_memory("cpu") == 3000
        (tmp_path / "memory.current").write_text("9000\n")
        assert machine.free_memory("cpu") == 0

    def test_the_system_is_asked_where_there_is_no_proc(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "_MEMORY", tmp_path / "absent")
        assert machine._system_memory() > 1 << 20

    @pytest.mark.parametrize("device", ["cuda:99", "meta", "no such thing"])
    def test_a_device_that_is_not_there_has_none(self, device: str) -> None:
        assert machine.free_memory(device) is None
