"""What the packed decoder does besides decoding: reuse across turns, coming and going, limits."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from searchrl.models import cohort, packed_attention, packed_decoder
from searchrl.models.drawing import Request
from searchrl.models.local import LocalModel
from searchrl.models.packed_decoder import PackedDecoder
from searchrl.models.padded_decoder import PaddedDecoder
from searchrl.models.protocol import Completion, Sampling, StopReason
from tests.test_models_packed_attention import llama, made, qwen2, qwen3


@pytest.fixture
def model(random_model: LocalModel) -> LocalModel:
    return LocalModel(copy.deepcopy(random_model.model), random_model.tokenizer)


def opened(model: LocalModel, **named: Any) -> PackedDecoder:
    return PackedDecoder(model.model, model.tokenizer, 1024, **named)


def groups(seed: int, count: int = 3, size: int = 4) -> list[Request]:
    """Groups with one prompt each, drawn with seeds of their own to different lengths."""
    draw = random.Random(seed)
    requests = []
    for _ in range(count):
        prompt = tuple(draw.choices(range(3, 200), k=draw.randint(20, 60)))
        for _ in range(size):
            sampling = Sampling(draw.randint(1, 16), 1.0, seed=draw.randrange(10**6))
            requests.append(Request(prompt, sampling))
    return requests


def next_turn(requests: Sequence[Request], said: Sequence[Completion]) -> list[Request]:
    return [
        Request((*request.prompt, *one.token_ids, 9, 8, 7), request.sampling)
        for request, one in zip(requests, said, strict=True)
    ]


def assert_same(one: Sequence[Completion], other: Sequence[Completion]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.token_ids == right.token_ids
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)
        assert (left.text, left.stop_reason) == (right.text, right.stop_reason)


@pytest.fixture(params=[1, 100, 10**9], ids=["all shared", "some shared", "none shared"])
def sharing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "_WORTH_SHARING", request.param)


@pytest.mark.usefixtures("sharing")
def test_three_turns_equal_those_decoded_from_scratch(model: LocalModel) -> None:
    decoder = opened(model)
    requests = groups(1)
    for _ in range(3):
        oracle = PaddedDecoder(model.model, model.tokenizer, 1024).complete(requests)
        said = decoder.complete(requests)
        assert_same(said, oracle)
        requests = next_turn(requests, said)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_under_the_masks_of_other_devices_it_is_the_same(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (packed_decoder, packed_attention):
        monkeypatch.setattr(module, "masked", lambda device: True)
    decoder, requests = opened(model), groups(4)
    for _ in range(2):
        oracle = PaddedDecoder(model.model, model.tokenizer, 1024).complete(requests)
        said = decoder.complete(requests)
        assert_same(said, oracle)
        requests = next_turn(requests, said)


def with_three_starts(budget: int) -> list[Request]:
    draw = random.Random(0)
    starts = [draw.choices(range(40), k=9) for _ in range(3)]
    return [
        Request(tuple(starts[n % 3] + draw.choices(range(40), k=n)), Sampling(budget, 1.0, seed=n))
        for n in range(9)
    ]


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("kind", [qwen3, qwen2, llama])
def test_every_family_is_decoded_as_by_its_own_attention(kind: Any, model: LocalModel) -> None:
    other: Any = made(kind)
    requests = with_three_starts(8)
    oracle = PaddedDecoder(other, model.tokenizer, 100).complete(requests)
    assert_same(PackedDecoder(other, model.tokenizer, 100).complete(requests), oracle)


def computed(model: LocalModel) -> list[int]:
    """Grows by the tokens of every pass."""
    sizes: list[int] = []

    def note(module: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        sizes.append(given[0].numel())

    model.model.model.embed_tokens.register_forward_pre_hook(note)
    return sizes


def test_a_prompt_is_computed_once_and_a_turn_only_what_is_new(model: LocalModel) -> None:
    decoder, prompt = opened(model), tuple(range(10, 60))
    requests = [Request(prompt, Sampling(6, 1.0, seed=n)) for n in range(8)]
    sizes = computed(model)
    said = decoder.complete(requests)
    assert sizes == [50, 8, 8, 8, 8, 8]
    sizes.clear()
    decoder.complete(next_turn(requests, said))
    # The last token said was never fed; then come three of the environment.
    assert sizes[0] == 4 * len({one.token_ids for one in said})


def test_what_a_model_ended_itself_is_not_kept(model: LocalModel) -> None:
    end, prompt = model.tokenizer.eos_token_id, (5, 6, 7)
    head = model.model.lm_head.register_forward_hook(
        lambda module, taken, logits: logits.index_fill(-1, torch.tensor([end]), 1e4)
    )
    decoder = opened(model)
    [said] = decoder.complete([Request(prompt, Sampling(9))])
    head.remove()
    assert said.stop_reason is StopReason.END_OF_SEQUENCE
    assert len(decoder._cache) == 0


def test_changed_weights_are_noticed(model: LocalModel) -> None:
    decoder, requests = opened(model), groups(2)
    decoder.complete(requests)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=0.3, fused=True)
    for parameter in model.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    oracle = PaddedDecoder(model.model, model.tokenizer, 1024).complete(requests)
    assert_same(decoder.complete(requests), oracle)
    model.model.load_state_dict({k: 1.5 * v for k, v in model.model.state_dict().items()})
    oracle = PaddedDecoder(model.model, model.tokenizer, 1024).complete(requests)
    assert_same(decoder.complete(requests), oracle)


def test_rows_come_and_go_while_others_are_decoded(model: LocalModel) -> None:
    decoder, requests = opened(model), groups(3, count=6)
    expected = decoder.complete(requests)
    rows = [decoder.drawing.row(request) for request in requests]
    decoder.forget()
    waiting = list(rows)
    while waiting or decoder.active:
        taken = decoder.admit(waiting[:3])
        waiting = waiting[taken:]
        for row in decoder.advance():
            assert row.stop is not None
    assert_same([decoder.drawing.completion(row) for row in rows], expected)


def test_rows_that_nobody_waits_for_are_dropped(model: LocalModel) -> None:
    decoder = opened(model)
    rows = [decoder.drawing.row(Request((5, n), Sampling(500, 1.0, seed=n))) for n in range(6)]
    short = decoder.drawing.row(Request((5, 9), Sampling(20)))
    decoder.admit([*rows, short])
    decoder.drop(rows)
    assert decoder.active <= 1
    decoder.advance()
    assert len(short.token_ids) <= 20
    assert decoder.active == 0
    assert all(len(row.token_ids) <= 1 for row in rows)


def test_rows_wait_until_there_is_room_for_their_keys(model: LocalModel) -> None:
    token = 2 * 2 * 2 * 16 * 4
    decoder = opened(model, memory=150 * token)
    requests = [Request(tuple(range(n, n + 40)), Sampling(10, 1.0, seed=n)) for n in range(3, 9)]
    rows = [decoder.drawing.row(request) for request in requests]
    assert decoder.admit(rows) == 3
    assert decoder.admit(rows[3:]) == 0
    decoder.forget()
    oracle = PaddedDecoder(model.model, model.tokenizer, 1024).complete(requests)
    assert_same(decoder.complete(requests), oracle)
    # What has room for no row at all is decoded alone all the same.
    assert_same(opened(model, memory=1).complete(requests), oracle)
