"""Packed rows against one unpadded sequence at a time."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from searchrl.models import packed_attention
from searchrl.models.packed_attention import TreeAttention, tree_mask
from searchrl.models.packed_blocks import packs, run_packed
from searchrl.models.token_tree import TokenTree, build_tree

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def made(kind: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = kind()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return model.eval()


def sequences(seed: int) -> list[list[int]]:
    """Three families with a common beginning, one of them twice and one cut short."""
    draw = random.Random(seed)
    found: list[list[int]] = []
    for _ in range(3):
        start = [draw.randrange(40) for _ in range(12)]
        for _ in range(3):
            own = [draw.randrange(3) for _ in range(draw.randint(1, 9))]
            found.append(start[: draw.randint(3, 12)] + own)
    return [*found, found[0], found[1][:4]]


def packed_states(
    model: PreTrainedModel, tree: TokenTree, attention: Any, wanted: torch.Tensor | None = None
) -> torch.Tensor:
    tokens, positions = torch.from_numpy(tree.token_ids), torch.from_numpy(tree.positions)
    return run_packed(model.model, tokens, positions, attention, wanted)


@pytest.mark.parametrize("kind", [qwen3, qwen2, llama])
def test_states_and_gradients_equal_those_of_each_sequence_alone(kind: Any) -> None:
    model, rows = made(kind), sequences(1)
    assert packs(model.config)
    tree = build_tree(rows)
    weights = [torch.randn(len(row), 32) for row in rows]
    states = packed_states(model, tree, TreeAttention(tree, CPU))
    loss = torch.zeros(())
    for places, weight in zip(tree.places, weights, strict=True):
        loss = loss + (states[torch.from_numpy(places)] * weight).sum()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row, places, weight in zip(rows, tree.places, weights, strict=True):
        alone = model.model(input_ids=torch.tensor([row])).last_hidden_state[0]
        torch.testing.assert_close(states[torch.from_numpy(places)], alone, atol=1e-4, rtol=1e-4)
        (alone * weight).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5 * scale, rtol=1e-4)


WANTED = {
    "one": [5],
    "first and last": [0, -1],
    "every second": list(range(0, 40, 2)),
    "runs": [3, 4, 5, 9, 10, 20, 21, 22, 23],
}


@pytest.mark.parametrize("name", WANTED)
def test_wanted_states_and_their_gradients_are_those_of_a_whole_pass(name: str) -> None:
    model, tree = made(qwen3), build_tree(sequences(4))
    wanted = np.arange(len(tree))[WANTED[name]]
    weights = torch.randn(len(wanted), 32)
    whole = packed_states(model, tree, TreeAttention(tree, CPU))[torch.from_numpy(wanted)]
    (whole * weights).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    attention = TreeAttention(tree, CPU, wanted)
    states = packed_states(model, tree, attention, torch.from_numpy(wanted))
    torch.testing.assert_close(states, whole, atol=1e-5, rtol=1e-5)
    (states * weights).sum().backward()
    for parameter_name, gradient in expected.items():
        found = model.get_parameter(parameter_name).grad
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found, gradient, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("wanted", [None, [2], [0, 2, 3, 5]])
def test_the_gradient_of_the_attention_itself_equals_finite_differences(
    wanted: list[int] | None,
) -> None:
    tree = build_tree([[1, 2, 3], [1, 2, 4], [1, 5], [6]])
    torch.manual_seed(0)
    count = len(tree) if wanted is None else len(wanted)
    q, k, v = (
        torch.randn(1, heads, tokens, 3, dtype=torch.float64, requires_grad=True)
        for heads, tokens in ((4, count), (2, len(tree)), (2, len(tree)))
    )
    attention = TreeAttention(tree, CPU, None if wanted is None else np.array(wanted))
    assert torch.autograd.gradcheck(lambda *qkv: attention.attend(0, *qkv, 0.3), (q, k, v))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_block_mask_of_other_devices_says_the_same() -> None:
    tree = build_tree(sequences(2))
    torch.manual_seed(0)
    q = torch.randn(1, 4, len(tree), 8)
    k, v = torch.randn(1, 2, len(tree), 8), torch.randn(1, 2, len(tree), 8)
    expected = TreeAttention(tree, CPU).attend(0, q, k, v, 0.3)
    for wanted in (np.arange(len(tree)), np.array([1, 2, 7, 20])):
        mask = tree_mask(tree, wanted, CPU)
        masked = packed_attention.flex_attend(q[:, :, wanted], k, v, mask, 0.3)
        torch.testing.assert_close(masked, expected[:, :, wanted], atol=1e-5, rtol=1e-5)


def test_in_bfloat16_it_is_as_near_as_the_models_own_attention() -> None:
    model, rows = made(qwen3), sequences(3)
    tree = build_tree(rows)
    with torch.autocast("cpu", torch.bfloat16):
        states = packed_states(model, tree, TreeAttention(tree, CPU))
        states.float().sum().backward()
    for row, places in zip(rows, tree.places, strict=True):
        with torch.no_grad():
            exact = model.model(input_ids=torch.tensor([row])).last_hidden_state[0]
            with torch.autocast("cpu", torch.bfloat16):
                alone = model.model(input_ids=torch.tensor([row])).last_hidden_state[0]
            error = (states[torch.from_numpy(places)] - exact).abs().mean()
            usual = (alone - exact).abs().mean()
        assert float(error) < 2 * float(usual) + 1e-3


def test_a_model_runs_as_ever_outside_of_packed_rows() -> None:
    model, tokens = made(qwen3), torch.tensor([[1, 2, 3]])
    tree = build_tree(tokens.tolist())
    before = model(tokens).logits
    packed_states(model, tree, TreeAttention(tree, CPU))
    assert torch.equal(model(tokens).logits, before)

    class Failing:
        def attend(self, *_: Any) -> torch.Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        packed_states(model, tree, Failing())
    assert torch.equal(model(tokens).logits, before)


def test_what_is_not_full_rotary_attention_is_not_packed() -> None:
    windowed = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=0)
    assert not packs(windowed)
    assert packs(Qwen2Config(**SIZES))
    assert not packs(GPT2Config())
