"""Adapters: the reference without them, what they are merged into, and their files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from searchrl.data.storage import write_json
from searchrl.errors import InputError
from searchrl.models.adapters import (
    add_adapter,
    has_adapter,
    load_factors,
    merged_weights,
    save_adapter,
    without_adapter,
)
from searchrl.models.drawing import Request
from searchrl.models.local import LocalModel, load_model
from searchrl.models.options import LoraOptions
from searchrl.models.protocol import Sampling
from searchrl.models.weights import weights_identity
from searchrl.training.learner import Learner
from searchrl.training.options import LearningOptions
from tests.training_fixtures import (
    assert_bitwise_equal,
    groups,
    learner,
    save_model,
    tiny_model,
)

pytest.importorskip("peft")
TOKENS = torch.arange(3, 40).unsqueeze(0)


def adapted(base: str = "base", tied: bool = True, **values: object) -> PreTrainedModel:
    model = tiny_model(0, tied)
    add_adapter(model, LoraOptions(**({"rank": 4} | values)), base, seed=7)
    return model


def trained(model: PreTrainedModel, steps: int = 3, **values: object) -> Learner:
    """A learner of an adapted copy of the model, after some steps at a high rate."""
    subject = learner(model, **({"learning_rate": 1e-2} | values))
    for step in range(steps):
        subject.update(groups(step, [[1.0, 0.0], [0.0, 1.0]]), step)
    return subject


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def test_a_fresh_adapter_changes_nothing_and_its_seed_decides_it() -> None:
    model = tiny_model()
    before = torch.get_rng_state()
    add_adapter(model, LoraOptions(rank=4), "base", seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(model), logits(tiny_model()))
    assert_bitwise_equal(model.state_dict(), adapted().state_dict())
    assert has_adapter(model)
    assert not has_adapter(tiny_model())
    factors = {name for name, value in model.named_parameters() if value.requires_grad}
    assert len(factors) == 2 * 2 * 7
    assert all("lora_" in name for name in factors)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_only_factors_and_the_critic_s_head_are_trained(algorithm: str) -> None:
    model = adapted()
    subject = trained(model, algorithm=algorithm)
    before, after = dict(model.named_parameters()), dict(subject.searcher.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    if subject.critic is not None:
        own = dict(subject.critic.named_parameters())
        assert all(("lora_" in n or n == "head.weight") == p.requires_grad for n, p in own.items())
        shared = {id(parameter) for parameter in subject.searcher.parameters()}
        assert {n for n, p in own.items() if id(p) in shared} == {
            n for n, p in own.items() if not p.requires_grad
        }


def test_the_reference_is_the_base_on_the_same_weights_whatever_is_learned() -> None:
    model = adapted()
    options = LearningOptions(
        algorithm="grpo", kl_coefficient=0.1, kl_placement="loss", learning_rate=1e-2
    )
    reference = without_adapter(model)
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in own for parameter in reference.parameters())
    assert not has_adapter(reference)
    subject = Learner(model, options, 1.0, reference)
    made = groups(0, [[1.0, 0.0]])
    assert subject.update(made, 0)["reference_kl"] == 0
    assert subject.update(made, 1)["reference_kl"] > 0
    assert torch.equal(logits(reference), logits(tiny_model()))
    assert not torch.allclose(logits(model), logits(reference), atol=1e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_what_it_is_merged_into_is_the_adapted_model(tied: bool, tmp_path: Path) -> None:
    model = trained(adapted(tied=tied)).searcher
    before = copy.deepcopy(model.state_dict())
    without_adapter(model).save_pretrained(tmp_path, state_dict=merged_weights(model))
    assert_bitwise_equal(model.state_dict(), before)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(merged), logits(model), atol=1e-4)
    assert not torch.allclose(logits(merged), logits(tiny_model(0, tied)), atol=1e-2)


def test_rollout_and_update_agree_and_the_cache_follows_the_factors(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    subject = trained(adapted())
    model = LocalModel(subject.searcher, tiny_tokenizer)
    asked = [Request(tuple(range(3, 20 + n)), Sampling(8, 0.8, seed=n)) for n in range(3)]

    def difference() -> float:
        worst = 0.0
        for request, got in zip(asked, model._decoder.complete(asked), strict=True):
            whole = torch.tensor([[*request.prompt, *got.token_ids]])
            with torch.no_grad():
                logprobs = (subject.searcher(whole).logits[0] / 0.8).log_softmax(-1)
            start = len(request.prompt)
            exact = [float(logprobs[start + n - 1, t]) for n, t in enumerate(got.token_ids)]
            gaps = [abs(a - b) for a, b in zip(exact, got.logprobs, strict=True)]
            worst = max(worst, *gaps)
        return worst

    assert difference() < 1e-4
    subject.update(groups(5, [[1.0, 0.0]]), 3)
    assert difference() < 1e-4


class TestFiles:
    def saved(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        save_model(LocalModel(tiny_model(), tokenizer), tmp_path / "base")
        model = trained(adapted(str(tmp_path / "base"))).searcher
        (tmp_path / "adapter").mkdir()
        save_adapter(model, tmp_path / "adapter")
        tokenizer.save_pretrained(tmp_path / "adapter")
        return model

    @pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
    def test_peft_reads_it_onto_the_base(
        self, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        import peft

        model = self.saved(tmp_path, tiny_tokenizer)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        assert torch.equal(
            logits(peft.PeftModel.from_pretrained(base, tmp_path / "adapter")), logits(model)
        )

    def test_a_model_is_loaded_from_it_as_the_merged_one(
        self, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        model = self.saved(tmp_path, tiny_tokenizer)
        loaded = load_model(str(tmp_path / "adapter")).model
        assert not has_adapter(loaded)
        assert_bitwise_equal(dict(loaded.state_dict()), merged_weights(model))

    def test_factors_come_back_bitwise_and_into_an_equal_adapter_only(
        self, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        model = self.saved(tmp_path, tiny_tokenizer)
        other = adapted()
        load_factors(other, tmp_path / "adapter")
        assert_bitwise_equal(other.state_dict(), model.state_dict())
        with pytest.raises(InputError, match="does not fit this recipe's adapter"):
            load_factors(adapted(rank=2), tmp_path / "adapter")
        with pytest.raises(InputError, match="does not fit this recipe's adapter"):
            load_factors(adapted(targets=("q_proj",)), tmp_path / "adapter")
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
        with pytest.raises(InputError, match="no such file"):
            load_factors(other, tmp_path / "adapter")

    def test_it_is_not_put_onto_other_weights(
        self, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self.saved(tmp_path, tiny_tokenizer)
        folder, base = tmp_path / "adapter", tmp_path / "base"
        identity = weights_identity(str(folder))
        assert identity.startswith("sha256:")
        tiny_model(1).save_pretrained(base)
        with pytest.raises(InputError, match="was trained on other weights than"):
            load_model(str(folder))
        base.rename(tmp_path / "moved")
        with pytest.raises(InputError, match=r"its base .* is not there"):
            load_model(str(folder))
        assert weights_identity(str(folder)) == identity

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
            ({"use_dora": True}, "is no plain LoRA"),
            ({"modules_to_save": ["lm_head"]}, r"trains \['lm_head'\] as well"),
            ({"peft_type": "NOTHING"}, "cannot be read"),
        ],
    )
    def test_what_cannot_be_read_is_said(
        self,
        change: dict[str, object],
        said: str,
        tmp_path: Path,
        tiny_tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        self.saved(tmp_path, tiny_tokenizer)
        file = tmp_path / "adapter" / "adapter_config.json"
        write_json(file, json.loads(file.read_bytes()) | change)
        with pytest.raises(InputError, match=said):
            load_model(str(tmp_path / "adapter"))


def test_a_target_that_is_no_matrix_is_named() -> None:
    with pytest.raises(InputError, match=r"lora\.targets: .*wheel"):
        adapted(targets=("wheel",))


def test_factors_have_the_model_s_number_form() -> None:
    model = tiny_model().to(torch.bfloat16)
    add_adapter(model, LoraOptions(rank=2), "base", seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    masters = trained(model).optimizer.state_dict()["state"]
    assert {values["master"].dtype for values in masters.values()} == {torch.float32}
