"""vLLM decodes as the decoders of this package do, and with the trainer's weights or not at all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from searchrl.errors import UnstableError
from searchrl.models.canary import TOLERANCES
from searchrl.models.drawing import Request
from searchrl.models.options import VllmOptions
from searchrl.models.packed_decoder import PackedDecoder
from searchrl.models.protocol import Completion, Sampling, StopReason
from searchrl.models.vllm_decoder import VllmDecoder, open_vllm_decoder

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]
LENGTH = 512


FAMILIES: dict[str, Any] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
}


def built(family: str, vocabulary: int) -> PreTrainedModel:
    """Two layers with heads of 32 dimensions; vLLM has no CPU kernel for smaller ones."""
    config, kind, named = FAMILIES[family]
    sizes = {"hidden_size": 128, "intermediate_size": 192, "max_position_embeddings": LENGTH}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model: PreTrainedModel = kind(config(vocab_size=vocabulary, **sizes, **heads, **named)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return model


def opened(model: PreTrainedModel, tokenizer: Any, **options: Any) -> VllmDecoder:
    return open_vllm_decoder(model, tokenizer, LENGTH, VllmOptions(**options))


@pytest.fixture(scope="module")
def shared(tiny_tokenizer: Any) -> VllmDecoder:
    return opened(built("qwen3", len(tiny_tokenizer)), tiny_tokenizer)


@pytest.fixture
def decoder(shared: VllmDecoder, tiny_tokenizer: Any) -> VllmDecoder:
    shared.forget()
    shared.model.load_state_dict(built("qwen3", len(tiny_tokenizer)).state_dict())
    return shared


@pytest.fixture
def packed(decoder: VllmDecoder, tiny_tokenizer: Any) -> PackedDecoder:
    return PackedDecoder(decoder.model, tiny_tokenizer, LENGTH)


def greedy(seed: int, stop: tuple[str, ...] = (), count: int = 6) -> list[Request]:
    draw = random.Random(seed)
    shared = draw.choices(range(3, 200), k=140)
    return [
        Request(tuple(shared + draw.choices(range(3, 200), k=n + 1)), Sampling(12, 0.0, stop))
        for n in range(count)
    ]


def assert_same(one: Sequence[Completion], other: Sequence[Completion]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.token_ids == right.token_ids
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)
        assert (left.text, left.stop_reason) == (right.text, right.stop_reason)


def test_greedy_tokens_are_those_of_the_packed_decoder(
    decoder: VllmDecoder, packed: PackedDecoder
) -> None:
    requests = greedy(0)
    for _ in range(2):
        said = decoder.complete(requests)
        assert_same(said, packed.complete(requests))
        requests = [
            Request((*request.prompt, *one.token_ids, 9, 8), request.sampling)
            for request, one in zip(requests, said, strict=True)
        ]
    assert 0 <= decoder.measures()["sync/mismatch"] < 1e-5


def test_a_completion_ends_where_it_ends_elsewhere(
    decoder: VllmDecoder, packed: PackedDecoder, tiny_tokenizer: Any
) -> None:
    stops = []
    for one in packed.complete(greedy(1)):
        stops.append(tiny_tokenizer.decode(one.token_ids[4:6]))
    requests = greedy(1, stop=tuple(stop for stop in stops if stop))
    said = decoder.complete(requests)
    assert {one.stop_reason for one in said} == {StopReason.STOP_STRING}
    assert_same(said, packed.complete(requests))
    ended = [packed.complete([one])[0].token_ids[2] for one in greedy(1)]
    ends = decoder.drawing.ends
    try:
        decoder.drawing.ends = packed.drawing.ends = frozenset(ended)
        said = decoder.complete(greedy(1))
        assert {one.stop_reason for one in said} == {StopReason.END_OF_SEQUENCE}
        assert_same(said, packed.complete(greedy(1)))
    finally:
        decoder.drawing.ends = ends


def test_a_seed_fixes_a_draw_whatever_it_is_batched_with(decoder: VllmDecoder) -> None:
    requests = [
        Request(request.prompt, Sampling(10, 0.7, seed=2**62 + number % 4))
        for number, request in enumerate([greedy(2)[0]] * 8)
    ]
    said = decoder.complete(requests)
    assert_same(said[:4], said[4:])
    assert len({one.token_ids for one in said}) == 4
    assert decoder.complete(requests[3:4])[0].token_ids == said[3].token_ids
    for one in said[:4]:
        tokens = torch.tensor([[*requests[0].prompt, *one.token_ids]])
        with torch.no_grad():
            logits_TV = decoder.model(tokens).logits[0, len(requests[0].prompt) - 1 : -1]
        places = range(len(one.token_ids))
        expected = torch.log_softmax(logits_TV / 0.7, -1)[places, list(one.token_ids)]
        assert one.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_rows_that_are_dropped_are_not_decoded_on(
    decoder: VllmDecoder, packed: PackedDecoder
) -> None:
    requests = greedy(3)
    rows = [decoder.drawing.row(request) for request in requests]
    assert decoder.admit(rows) == len(rows)
    decoder.drop(rows[:2])
    assert decoder.active == 4
    while decoder.active:
        decoder.advance()
    assert not rows[0].token_ids
    said = [decoder.drawing.completion(row) for row in rows[2:]]
    assert_same(said, packed.complete(requests[2:]))


@torch.no_grad()
def change(decoder: VllmDecoder, size: float = 0.05) -> None:
    for number, parameter in enumerate(decoder.model.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def test_a_sync_changes_outputs_as_the_weights_do(
    decoder: VllmDecoder, packed: PackedDecoder
) -> None:
    before = decoder.complete(greedy(4))
    for _ in range(2):
        change(decoder)
        after = decoder.complete(greedy(4))
        assert_same(after, packed.complete(greedy(4)))
        assert [one.token_ids for one in after] != [one.token_ids for one in before]
        before = after


def test_a_sync_that_loses_a_layer_is_caught(
    decoder: VllmDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from searchrl.models.vllm_transfer import InProcessTransfer

    def lossy(self: Any, update_info: Any) -> None:
        kept = [one for one in update_info.tensors if "layers.1.mlp.down_proj" not in one[0]]
        self.model.load_weights(kept)

    decoder.complete(greedy(5))
    with monkeypatch.context() as patch:
        patch.setattr(InProcessTransfer, "receive_weights", lossy)
        change(decoder)
        with pytest.raises(UnstableError, match=r"vLLM \S+ does not compute what the trainer"):
            decoder.complete(greedy(5))
        # It stays refused while it is not mended, though the weights have not changed since.
        with pytest.raises(UnstableError):
            decoder.complete(greedy(5))
        decoder.forget()
    decoder.complete(greedy(5))


def test_a_sync_that_does_nothing_is_caught_while_steps_are_small(
    decoder: VllmDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from searchrl.models.vllm_transfer import InProcessTransfer

    decoder.complete(greedy(6))
    change(decoder, 1e-5)
    for name in ("start_weight_update", "finish_weight_update"):
        monkeypatch.setattr(InProcessTransfer, name, lambda self: None)
    monkeypatch.setattr(InProcessTransfer, "receive_weights", lambda self, info: None)
    with pytest.raises(UnstableError, match="did not take the weights"):
        decoder.complete(greedy(6))
    decoder.forget()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_decoded(family: str, tiny_tokenizer: Any) -> None:
    model = built(family, len(tiny_tokenizer))
    oracle = PackedDecoder(model, tiny_tokenizer, LENGTH).complete(greedy(8))
    assert_same(opened(model, tiny_tokenizer).complete(greedy(8)), oracle)


def test_a_smaller_number_form_is_near_enough(tiny_tokenizer: Any) -> None:
    decoder = opened(built("qwen3", len(tiny_tokenizer)), tiny_tokenizer, dtype="bfloat16")
    decoder.complete(greedy(7))
    assert 1e-4 < decoder.measures()["sync/mismatch"] < TOLERANCES["bfloat16"]
