"""vLLM as a decoder, without vLLM: settings, ends, syncs and the canary, on a scripted engine."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from searchrl.errors import InputError, SearchRLError, UnstableError
from searchrl.models import vllm_engine
from searchrl.models.canary import TEMPERATURE, Canary, Scored
from searchrl.models.drawing import Drawing, Request
from searchrl.models.local import LocalModel
from searchrl.models.options import VllmOptions
from searchrl.models.padded_decoder import PaddedDecoder
from searchrl.models.protocol import Completion, Sampling, StopReason
from searchrl.models.vllm_decoder import VllmDecoder, sampling_settings
from searchrl.models.vllm_engine import Progress, VllmEngine
from searchrl.recipe_file import load_recipe

LENGTH = 256


class ScriptedEngine:
    """Stands at vLLM's boundary: computes with a copy of the weights, says a token a step.

    ``ahead`` tokens come at a time, as they do where vLLM has computed on before it is told to
    stop; ``lossy`` and ``deaf`` break what a sync does.
    """

    version = "0"
    max_length = 200
    asleep = False

    def __init__(self, local: LocalModel, ahead: int = 1) -> None:
        self._tokenizer = local.tokenizer
        self.model = copy.deepcopy(local.model)
        self.ahead = ahead
        self.lossy = self.deaf = False
        self.syncs = 0
        self.waiting: dict[str, Completion] = {}
        self.told: dict[str, int] = {}
        self.aborted: list[str] = []

    def add(self, name: str, prompt: Sequence[int], settings: Mapping[str, Any]) -> None:
        [self.waiting[name]] = self._say([prompt], settings)
        self.told[name] = 0

    def _say(
        self, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any]
    ) -> list[Completion]:
        sampling = Sampling(settings["max_tokens"], settings["temperature"], seed=7)
        decoder = PaddedDecoder(self.model, self._tokenizer, LENGTH)
        return decoder.complete([Request(tuple(prompt), sampling) for prompt in prompts])

    def step(self) -> list[Progress]:
        made = []
        for name, said in list(self.waiting.items()):
            start, end = self.told[name], self.told[name] + self.ahead
            pairs = list(zip(said.token_ids, said.logprobs, strict=True))
            self.told[name] = end
            ended = end >= len(pairs)
            made.append(Progress(name, tuple(pairs[start:end]), ended))
            if ended:
                del self.waiting[name]
        return made

    def abort(self, names: Sequence[str]) -> None:
        self.aborted += names
        for name in names:
            self.waiting.pop(name, None)

    def take(self, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
        self.syncs += 1
        self.asleep = False
        if not self.deaf:
            kept = [one for one in weights if not (self.lossy and "layers.1.mlp" in one[0])]
            self.model.load_state_dict(dict(kept), strict=False)

    def sleep(self) -> None:
        self.asleep = True

    def score(self, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any]) -> list[Scored]:
        scored = []
        for prompt, said in zip(prompts, self._say(prompts, settings), strict=True):
            with torch.no_grad():
                logits_TV = self.model(torch.tensor([prompt])).logits[0, :-1]
            read_T = torch.log_softmax(logits_TV, -1).gather(1, torch.tensor(prompt)[1:, None])
            read = tuple(read_T.flatten().tolist())
            scored.append(Scored(tuple(prompt), said.token_ids, read, said.logprobs))
        return scored


@pytest.fixture
def local(random_model: LocalModel) -> LocalModel:
    return LocalModel(copy.deepcopy(random_model.model), random_model.tokenizer)


def opened(local: LocalModel, engine: ScriptedEngine) -> VllmDecoder:
    return VllmDecoder(local.model, local.tokenizer, LENGTH, engine, 1e-3)  # type: ignore[arg-type]


def requests(count: int, length: int = 6, **named: Any) -> list[Request]:
    return [Request((5, 6, 7 + n), Sampling(length, **named)) for n in range(count)]


def assert_same(one: Sequence[Completion], other: Sequence[Completion]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)
        assert left == replace(right, logprobs=left.logprobs)


@torch.no_grad()
def change(local: LocalModel, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in local.model.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def test_a_row_as_vllm_is_asked_for_it(local: LocalModel) -> None:
    drawing = Drawing(local.model, local.tokenizer, 10)
    drawn = drawing.row(Request((1, 2, 3), Sampling(30, 0.7, ("</query>",), seed=2**62)))
    settings = sampling_settings(drawn, {9, 4})
    # Stop strings are seen here, and the context leaves room for seven tokens.
    assert settings == {
        "temperature": 0.7,
        "seed": 2**62,
        "max_tokens": 7,
        "stop_token_ids": [4, 9],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }
    greedy = drawing.row(Request((1,), Sampling(3, seed=5)))
    assert sampling_settings(greedy, ())["seed"] is None


@pytest.mark.parametrize("ahead", [1, 3])
def test_rows_end_by_this_packages_rules(local: LocalModel, ahead: int) -> None:
    engine = ScriptedEngine(local, ahead)
    decoder = opened(local, engine)
    oracle = PaddedDecoder(local.model, local.tokenizer, LENGTH)
    assert_same(decoder.complete(requests(3)), oracle.complete(requests(3)))
    said = oracle.complete(requests(1, 12))[0]
    stop = local.tokenizer.decode(said.token_ids[4:6])
    stopped = decoder.complete(requests(1, 12, stop=(stop,)))
    assert_same(stopped, oracle.complete(requests(1, 12, stop=(stop,))))
    assert stopped[0].stop_reason is StopReason.STOP_STRING
    # vLLM would have gone on.
    assert engine.aborted == ["3"]
    assert not engine.waiting


def test_nobody_waits_for_what_was_dropped(local: LocalModel) -> None:
    engine = ScriptedEngine(local)
    decoder = opened(local, engine)
    rows = [decoder.drawing.row(request) for request in requests(3)]
    decoder.admit(rows)
    decoder.drop(rows[:1])
    assert (decoder.active, engine.aborted) == (2, ["0"])
    decoder.forget()
    assert (decoder.active, engine.aborted) == (0, ["0", "1", "2"])


def test_an_end_without_a_reason_is_an_error(local: LocalModel) -> None:
    engine = ScriptedEngine(local)
    decoder = opened(local, engine)
    [row] = [decoder.drawing.row(request) for request in requests(1)]
    decoder.admit([row])
    engine.waiting["0"] = Completion((8,), (-1.0,), "", StopReason.LENGTH)
    with pytest.raises(SearchRLError, match="ended a completion after 1 tokens without a reason"):
        decoder.advance()


def test_the_context_is_what_the_smaller_of_both_has(local: LocalModel) -> None:
    assert opened(local, ScriptedEngine(local)).max_length == 200


def test_weights_go_over_when_they_have_changed(local: LocalModel) -> None:
    engine = ScriptedEngine(local)
    decoder = opened(local, engine)
    decoder.complete(requests(1))
    before = decoder.complete(requests(1))
    assert engine.syncs == 1
    change(local, 0.1)
    after = decoder.complete(requests(1))
    assert engine.syncs == 2
    assert after != before
    assert decoder.measures()["sync/mismatch"] < 1e-6
    # What sleeps has no weights left, whether or not they have changed.
    decoder.rest()
    assert decoder.complete(requests(1)) == after
    assert engine.syncs == 3


def test_a_sync_that_loses_weights_is_caught_and_stays_so(local: LocalModel) -> None:
    engine = ScriptedEngine(local)
    decoder = opened(local, engine)
    decoder.complete(requests(1))
    change(local, 0.1)
    engine.lossy = True
    for _ in range(2):
        with pytest.raises(UnstableError) as caught:
            decoder.complete(requests(1))
        assert "vLLM 0 does not compute what the trainer does" in str(caught.value)
        assert 'set rollout.engine = "native"' in str(caught.value)
        assert not decoder.active
    engine.lossy = False
    decoder.complete(requests(1))


def test_a_sync_that_does_nothing_is_caught_below_the_tolerance(local: LocalModel) -> None:
    engine = ScriptedEngine(local)
    decoder = opened(local, engine)
    decoder.complete(requests(1))
    engine.deaf = True
    change(local, 1e-8)
    decoder.complete(requests(1))
    change(local, 2e-5)
    with pytest.raises(UnstableError, match=r"did not take the weights: .* moved by up to"):
        decoder.complete(requests(1))


def test_the_canary_names_both_numbers_and_takes_no_nan(local: LocalModel) -> None:
    canary = Canary(local.model, local.tokenizer, LENGTH, 0.1, "E")
    engine = ScriptedEngine(local)

    def probe(prompts: Sequence[Sequence[int]], drawn: int, off: float) -> list[Scored]:
        settings = {"temperature": TEMPERATURE, "max_tokens": drawn}
        return [
            Scored(
                one.prompt,
                one.drawn,
                tuple(value - off for value in one.read_logprobs),
                tuple(value - off for value in one.drawn_logprobs),
            )
            for one in engine.score(prompts, settings)
        ]

    mismatch = canary.check(lambda prompts, drawn: probe(prompts, drawn, 0.05))
    assert mismatch == pytest.approx(0.05, abs=1e-5)
    with pytest.raises(UnstableError, match=r"is -\d+\.\d+ and the trainer's -\d+\.\d+, 0.2 nats"):
        canary.check(lambda prompts, drawn: probe(prompts, drawn, 0.2))
    with pytest.raises(UnstableError, match="is nan and"):
        canary.check(lambda prompts, drawn: probe(prompts, drawn, float("nan")))


class RecordedLlm:
    """vLLM's ``LLM``, as far as weights and sleep go; notes what is called, in order."""

    def __init__(self, **_: Any) -> None:
        self.calls: list[str] = []
        self.wakes = True

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any, **named: Any) -> bool:
            shown = ", ".join(f"{key}={value}" for key, value in named.items())
            self.calls.append(f"{name}({shown})")
            return self.wakes

        return call


def test_what_sleeps_wakes_around_the_sync(
    local: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(current_platform=SimpleNamespace(is_cuda_alike=lambda: True))
    library = SimpleNamespace(LLM=RecordedLlm, platforms=gpu, __version__="0")
    monkeypatch.setattr(vllm_engine, "_import", lambda: library)
    monkeypatch.setattr(vllm_engine, "_arguments", lambda folder, options, sleeps: {})
    engine = VllmEngine(local.model, VllmOptions())
    llm: Any = engine._llm
    exchange = [
        "start_weight_update()",
        "update_weights()",
        "finish_weight_update()",
        "reset_prefix_cache()",
    ]
    llm.calls.clear()
    engine.take([])
    assert llm.calls == exchange
    llm.calls.clear()
    engine.sleep()
    engine.sleep()
    assert engine.asleep
    engine.take([])
    assert not engine.asleep
    assert llm.calls == [
        "sleep(level=2)",
        "wake_up(tags=['weights'])",
        *exchange[:3],
        "wake_up(tags=['kv_cache'])",
        exchange[3],
    ]
    engine.sleep()
    llm.wakes = False
    with pytest.raises(SearchRLError, match="did not wake up"):
        engine.take([])
    assert engine.asleep
    stays = VllmEngine(local.model, VllmOptions(sleep=False))
    stays.sleep()
    assert not stays.asleep


def test_without_vllm_there_is_one_line(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"pip install 'searchrl\[vllm\]' in an environment"):
        VllmEngine(local.model, VllmOptions())


def test_a_gpu_that_vllm_would_not_take_is_refused(local: LocalModel) -> None:
    class Elsewhere:
        device = torch.device("cuda", 1)

    with pytest.raises(InputError, match=r"set CUDA_VISIBLE_DEVICES=1 and searcher.device"):
        VllmEngine(Elsewhere(), VllmOptions())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ((), "set learning.importance_cap"),
        (("learning.importance_cap=2.0", "rollout.temperature=0.001"), "vLLM draws at 0.01"),
    ],
)
def test_a_recipe_that_vllm_cannot_serve_is_refused(
    overrides: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        load_recipe("tiny-grpo", ["rollout.engine=vllm", *overrides])
