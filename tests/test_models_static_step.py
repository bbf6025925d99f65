"""Steps of fixed shapes, run as they are, compiled and recorded, against decoding without any."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from searchrl.models import slot_rows
from searchrl.models.adapters import add_adapter, merge_adapter
from searchrl.models.drawing import Request
from searchrl.models.local import LocalModel
from searchrl.models.options import LoraOptions
from searchrl.models.packed_decoder import PackedDecoder
from searchrl.models.padded_decoder import PaddedDecoder
from searchrl.models.protocol import Completion, Sampling
from searchrl.models.slots import Slots
from searchrl.models.static_step import bucket, static_step
from searchrl.models.steps import (
    CompiledSteps,
    PlainSteps,
    RecordedSteps,
    Steps,
    open_steps,
)
from tests.tape import Operations, Tape
from tests.test_models_packed_attention import llama, made, qwen2, qwen3
from tests.test_models_packed_decoder import assert_same, groups, next_turn, with_three_starts

CONTEXT = 1024


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_rows, "_LEAST_KEYS", 16)


@pytest.fixture
def model(random_model: LocalModel) -> LocalModel:
    return LocalModel(copy.deepcopy(random_model.model), random_model.tokenizer)


def opened(model: LocalModel, steps: Steps | None, **named: Any) -> PackedDecoder:
    return PackedDecoder(model.model, model.tokenizer, CONTEXT, steps=steps, **named)


def taped() -> tuple[RecordedSteps, Tape]:
    tape = Tape()
    return RecordedSteps(PlainSteps(), tape.recorder), tape


def padded(model: LocalModel, requests: Sequence[Request]) -> list[Completion]:
    return PaddedDecoder(model.model, model.tokenizer, CONTEXT).complete(requests)


KINDS: dict[str, Callable[[], Steps]] = {"plain": PlainSteps, "taped": lambda: taped()[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_turns_with_kept_prefixes_equal_those_decoded_from_scratch(
    model: LocalModel, kind: str
) -> None:
    decoder, requests = opened(model, KINDS[kind]()), groups(1)
    for _ in range(3):
        said = decoder.complete(requests)
        assert_same(said, padded(model, requests))
        requests = next_turn(requests, said)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [qwen3, qwen2, llama])
def test_every_family_is_decoded_as_by_its_own_attention(
    family: Any, kind: str, model: LocalModel
) -> None:
    other: Any = made(family)
    requests = with_three_starts(12)
    oracle = PaddedDecoder(other, model.tokenizer, 100).complete(requests)
    decoder = PackedDecoder(other, model.tokenizer, 100, steps=KINDS[kind]())
    assert_same(decoder.complete(requests), oracle)


def test_a_row_is_the_same_on_both_sides_of_every_bucket_edge(model: LocalModel) -> None:
    steps, _ = taped()
    decoder = opened(model, steps)
    lengths = set()
    for length in (12, 15, 16, 17, 23, 24, 25):
        requests = [Request(tuple(range(3, 3 + length)), Sampling(20, 1.0, seed=5))]
        assert_same(decoder.complete(requests), padded(model, requests))
        lengths |= {keys for _, keys in steps.recorded}
    assert lengths == {16, 24, 32, 48}


def test_greedy_and_drawn_rows_of_any_temperature_go_together(model: LocalModel) -> None:
    requests = [
        Request((5, 6, n), Sampling(10, temperature, seed=n))
        for n, temperature in enumerate((0.0, 0.3, 1.0, 1.7, 0.0, 1.0))
    ]
    assert_same(opened(model, taped()[0]).complete(requests), padded(model, requests))


def come_and_go(decoder: PackedDecoder, requests: Sequence[Request], taken: Sequence[int]) -> Any:
    """Complete requests that are admitted a few at a time, whenever a row has ended."""
    rows = [decoder.drawing.row(request) for request in requests]
    waiting, sizes = list(rows), list(taken)
    while waiting or decoder.active:
        size = sizes.pop() if sizes else len(waiting)
        waiting = waiting[decoder.admit(waiting[:size]) :]
        decoder.advance()
    return [decoder.drawing.completion(row) for row in rows]


def assert_drawn(decoder: PackedDecoder, request: Request, said: Completion) -> None:
    """Each token is where its number falls in the distribution of one pass, up to rounding."""
    length, tokens = len(request.prompt), torch.tensor(said.token_ids)
    with torch.inference_mode():
        logits = decoder.model(input_ids=torch.tensor([[*request.prompt, *said.token_ids]])).logits
    logprobs = torch.log_softmax(logits[0, length - 1 : -1].float(), dim=-1)
    own = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(torch.tensor(said.logprobs), own, atol=1e-4, rtol=0)
    sums = torch.softmax(logprobs.double(), dim=-1).cumsum(dim=-1)
    upper = sums.gather(1, tokens.unsqueeze(1)).squeeze(1)
    points = torch.tensor(decoder.drawing.row(request).uniforms, dtype=torch.float64)
    points = points[: len(tokens)]
    assert bool((points < upper + 1e-5).all())
    assert bool((points > upper - own.exp() - 1e-5).all())
    assert len(tokens) == request.sampling.max_tokens or said.token_ids[-1] in decoder.drawing.ends


@settings(max_examples=10)
@given(seed=st.integers(0, 999), taken=st.lists(st.integers(0, 4), max_size=6))
def test_rows_come_and_go_in_any_order(random_model: LocalModel, seed: int, taken: Any) -> None:
    steps, tape = taped()
    decoder, requests = opened(random_model, steps), groups(seed, count=2, size=3)
    # The first rows make few slots, so that they are made larger while rows are in them.
    for sizes in ([*taken, 1], [4]):
        for request, said in zip(requests, come_and_go(decoder, requests, sizes), strict=True):
            assert_drawn(decoder, request, said)
    assert tape.replayed > 0


def test_rows_move_together_where_others_have_left(model: LocalModel) -> None:
    decoder = opened(model, PlainSteps())
    limits = [4, 30, 4, 4, 30, 4, 4, 30]
    requests = [Request((7, n), Sampling(m, 1.0, seed=n)) for n, m in enumerate(limits)]
    widths: list[int] = []
    run = PlainSteps.run

    class Noting(PlainSteps):
        def run(self, model: Any, slots: Slots, count: int, length: int) -> None:
            widths.append(count)
            run(self, model, slots, count, length)

    noting = opened(model, Noting())
    assert_same(noting.complete(requests), decoder.complete(requests))
    assert (widths[0], widths[-1]) == (8, 3)


def test_slots_that_are_free_stay_within_their_room(model: LocalModel) -> None:
    long = [Request((7, n), Sampling(60, 1.0, seed=n)) for n in range(5)]
    # In the last of six slots, which is nearly full when it becomes free and is computed on.
    short = Request((9, *range(50)), Sampling(4, 1.0, seed=9))
    decoder = opened(model, PlainSteps())
    assert_same(decoder.complete([*long, short]), padded(model, [*long, short]))
    slots = decoder._slots
    assert slots is not None
    assert slots._slots is not None
    assert (slots._slots.count, slots._slots.length) == (6, 64)


def test_what_a_slot_held_before_does_not_matter(model: LocalModel) -> None:
    decoder, requests = opened(model, taped()[0]), groups(2)
    said = decoder.complete(requests)
    slots = decoder._slots
    assert slots is not None
    assert slots._slots is not None
    with torch.inference_mode():
        for layer in (*slots._slots.keys, *slots._slots.values):
            layer.fill_(torch.nan)
    assert_same(decoder.complete(requests), said)


def test_few_shapes_are_recorded(model: LocalModel) -> None:
    steps, tape = taped()
    decoder, shapes = opened(model, steps), set()
    for seed in range(3):
        come_and_go(decoder, groups(seed), [1, 3, 2, 5])
        shapes |= set(steps.recorded)
    rows, lengths = ({shape[place] for shape in shapes} for place in (0, 1))
    assert rows <= {1, 2, 3, 4, 6, 8, 12}
    assert lengths <= {16, 24, 32, 48, 64, 96}
    # All slots and sizes of these rounds were there after the first ones.
    before = tape.recorded
    for seed in range(3):
        come_and_go(decoder, groups(seed), [1, 3, 2, 5])
    again = tape.recorded
    for seed in range(3):
        come_and_go(decoder, groups(seed), [1, 3, 2, 5])
    assert tape.recorded == again >= before


def stepped(model: LocalModel) -> None:
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=0.3, fused=True)
    for parameter in model.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def replaced(model: LocalModel) -> None:
    """As weights that were cut among processes come back: elsewhere, and others."""
    for parameter in model.model.parameters():
        parameter.data = parameter.data * 1.2


def adapted(model: LocalModel) -> None:
    add_adapter(model.model, LoraOptions(rank=2, alpha=8.0), "base", seed=1)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()


def switched_off(model: LocalModel) -> None:
    for module in model.model.modules():
        if hasattr(module, "lora_A"):
            module.enable_adapters(False)  # type: ignore[operator]


def merged(model: LocalModel) -> None:
    merge_adapter(model.model)


def in_double(model: LocalModel) -> None:
    model.model.double()


@pytest.mark.parametrize("kind", ["cohorts", "taped", "compiled"])
@pytest.mark.parametrize(
    "changes",
    [(stepped, replaced, in_double), (adapted, stepped, switched_off), (adapted, merged)],
    ids=["weights", "adapter", "merged adapter"],
)
def test_changed_weights_are_noticed(
    model: LocalModel, changes: Sequence[Callable[[LocalModel], None]], kind: str
) -> None:
    steps = {"cohorts": None, "taped": taped()[0], "compiled": CompiledSteps("eager")}[kind]
    decoder = opened(model, steps)
    requests = [Request((5, n), Sampling(5, 1.0, seed=n)) for n in range(2)]
    for change in (lambda _: None, *changes):
        change(model)
        expected = padded(model, requests)
        assert_same(decoder.complete(requests), expected)
        assert_same(decoder.complete(requests), expected)


def test_weights_that_change_in_place_take_no_new_recording(model: LocalModel) -> None:
    steps, tape = taped()
    decoder, requests = opened(model, steps), groups(2)
    decoder.complete(requests)
    decoder.complete(requests)
    before, played = tape.recorded, tape.replayed
    stepped(model)
    assert_same(decoder.complete(requests), padded(model, requests))
    assert tape.recorded == before
    assert tape.replayed > played
    replaced(model)
    assert_same(decoder.complete(requests), padded(model, requests))
    assert tape.recorded > before


def test_at_rest_nothing_is_held(model: LocalModel) -> None:
    steps, _ = taped()
    decoder, requests = opened(model, steps), groups(2)
    said = decoder.complete(requests)
    assert steps.recorded
    decoder.rest()
    assert not steps.recorded
    assert decoder._slots is not None
    assert decoder._slots._slots is None
    assert_same(decoder.complete(requests), said)


def test_rest_leaves_rows_that_run_alone(model: LocalModel) -> None:
    decoder, requests = opened(model, taped()[0]), groups(2)
    expected = decoder.complete(requests)
    rows = [decoder.drawing.row(request) for request in requests]
    decoder.admit(rows)
    while decoder.active:
        decoder.advance()
        decoder.rest()
    assert_same([decoder.drawing.completion(row) for row in rows], expected)


def test_rows_that_nobody_waits_for_are_dropped(model: LocalModel) -> None:
    decoder = opened(model, taped()[0])
    rows = [decoder.drawing.row(Request((5, n), Sampling(500, 1.0, seed=n))) for n in range(3)]
    short = decoder.drawing.row(Request((5, 9), Sampling(20)))
    decoder.admit([*rows, short])
    decoder.drop(rows)
    decoder.advance()
    assert decoder.active == 0
    assert_same([decoder.drawing.completion(short)], padded(model, [short.request]))
    decoder.admit([decoder.drawing.row(short.request)])
    decoder.forget()
    assert decoder.active == 0


def test_rows_wait_until_there_is_room_for_their_keys(model: LocalModel) -> None:
    token = 2 * 2 * 2 * 16 * 4
    decoder = opened(model, taped()[0], memory=340 * token)
    requests = [Request(tuple(range(n, n + 40)), Sampling(10, 1.0, seed=n)) for n in range(3, 9)]
    rows = [decoder.drawing.row(request) for request in requests]
    # 50 tokens are 64 in a slot, and six slots are more than there is room for.
    assert decoder.admit(rows) == 5
    assert decoder.admit(rows[5:]) == 0
    slots = decoder._slots
    assert slots is not None
    assert slots._slots is not None
    assert slots._slots.count * slots._slots.length <= 340
    decoder.forget()
    assert_same(decoder.complete(requests), padded(model, requests))
    assert_same(opened(model, PlainSteps(), memory=1).complete(requests), padded(model, requests))


def test_a_token_costs_the_host_a_replay_and_a_read(model: LocalModel) -> None:
    replays = []
    steps = RecordedSteps(PlainSteps(), lambda: lambda work: lambda: replays.append(work))
    decoder = opened(model, steps)
    decoder.admit([decoder.drawing.row(Request((5, n), Sampling(30))) for n in range(4)])
    with decoder.inferring():
        for _ in range(2):
            decoder._step()
        with Operations() as operations:
            for _ in range(5):
                decoder._step()
    assert len(replays) == 6
    # The slots that are read; on a GPU a copy to the host besides.
    aten = torch.ops.aten
    reading = {aten.slice.Tensor, aten.resolve_conj.default, aten.resolve_neg.default}
    assert {function for function, *_ in operations.done} == reading
    assert len(operations.done) == 5 * 3


def test_a_step_asks_nothing_of_the_device(model: LocalModel) -> None:
    nowhere = model.model.to("meta")
    with torch.inference_mode():
        slots = Slots.like((torch.empty(1, 2, 3, 16, device="meta"),) * 2, 4, 32)
        static_step(nowhere, slots, 3, 16)


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(
    model: LocalModel, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(work: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate more")

    decoder, requests = opened(model, RecordedSteps(PlainSteps(), lambda: failing)), groups(1)
    for _ in range(2):
        assert_same(decoder.complete(requests), padded(model, requests))
    [line] = caplog.messages
    assert line == (
        "a decoding step cannot be recorded and runs as it is: "
        "CUDA out of memory. Tried to allocate more"
    )


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(
    model: LocalModel, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any) -> Any:
        raise RuntimeError("no compiler")

    caplog.set_level(logging.WARNING, "searchrl")
    decoder, requests = opened(model, CompiledSteps(failing)), groups(1, count=1)
    for _ in range(2):
        assert_same(decoder.complete(requests), padded(model, requests))
    [line] = caplog.messages
    assert "cannot be compiled and runs as it is: " in line
    assert "no compiler" in line


def test_a_model_with_a_hook_is_decoded_operation_by_operation(
    model: LocalModel, caplog: pytest.LogCaptureFixture
) -> None:
    steps, tape = taped()
    decoder, calls = opened(model, steps), []
    requests = [Request((5, n), Sampling(6, 1.0, seed=n)) for n in range(3)]
    hook = model.model.model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        calls.clear()
        assert_same(decoder.complete(requests), padded(model, requests))
        assert len(calls) == 6 + 6
    [line] = caplog.messages
    assert "model.layers.1 has a hook" in line
    assert tape.recorded == 0
    hook.remove()
    assert_same(decoder.complete(requests), padded(model, requests))
    assert tape.recorded > 0


@given(number=st.integers(1, 10**6), least=st.sampled_from([1, 16, 256]))
def test_a_bucket_is_at_most_half_as_large_again(number: int, least: int) -> None:
    size = bucket(number, least)
    assert number <= size
    assert size == least or size < 1.5 * number + 1
    assert bucket(size, least) == size


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_steps_are_one_graph_a_shape(model: LocalModel, backend: str) -> None:
    counters.clear()
    decoder = opened(model, CompiledSteps(backend))
    requests = [Request((5, n), Sampling(20, 1.0, seed=n)) for n in range(3)]
    for _ in range(2):
        assert_same(decoder.complete(requests), padded(model, requests))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_by_inductor_rows_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.training.random_model import write_model
    from searchrl.models.local import load_model

    monkeypatch.setattr(slot_rows, "_LEAST_KEYS", 64)
    write_model("nano", 0, "float32", tmp_path / "nano")
    model = load_model(str(tmp_path / "nano"), decoding="compiled")
    decoder: Any = model._decoder
    assert isinstance(decoder._slots._steps, CompiledSteps)
    requests = groups(1)
    for _ in range(2):
        expected = padded(model, requests)
        said = come_and_go(decoder, requests, [2, 4, 3])
        assert_same(said, expected)
        requests = next_turn(requests, said)
    assert decoder._slots._steps._compiled is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_graphs_are_replayed(model: LocalModel, dtype: torch.dtype) -> None:
    model.model.to("cuda", dtype)
    steps = open_steps(model.model, "auto")
    assert isinstance(steps, RecordedSteps)
    decoder, requests = opened(model, steps), groups(1)
    oracle = opened(model, PlainSteps()).complete(requests)
    for _ in range(3):
        # Prompts that are known in part are read in other shapes, which round otherwise.
        decoder._cache.clear()
        assert_same(decoder.complete(requests), oracle)
    assert steps.recorded
    if dtype is torch.float32:
        assert_same(oracle, padded(model, requests))
    stepped(model)
    assert_same(decoder.complete(requests), opened(model, PlainSteps()).complete(requests))
    rows = [decoder.drawing.row(Request((5, n), Sampling(40))) for n in range(4)]
    decoder.admit(rows)
    with decoder.inferring():
        for _ in range(3):
            decoder._step()
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        ) as profile:
            for _ in range(5):
                decoder._step()
    names = [event.name for event in profile.events()]
    assert names.count("cudaGraphLaunch") == 5
    assert names.count("cudaLaunchKernel") <= 5
    assert sum(name.startswith("aten::") for name in names) <= 5 * 12
