from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from searchrl.errors import InputError
from searchrl.models.decoder import Decoder
from searchrl.models.drawing import Request, inverse_cdf
from searchrl.models.local import LocalModel
from searchrl.models.packed_decoder import PackedDecoder
from searchrl.models.padded_decoder import PaddedDecoder
from searchrl.models.protocol import Completion, Sampling, StopReason

Opener = Callable[..., Decoder]


def packed(share: bool) -> Opener:
    def opened(*arguments: Any, **named: Any) -> Decoder:
        return PackedDecoder(*arguments, **named, share=share)

    return opened


@pytest.fixture(
    scope="module",
    params=[PaddedDecoder, packed(True), packed(False)],
    ids=["padded", "packed", "packed-apart"],
)
def opener(request: pytest.FixtureRequest) -> Opener:
    opened: Opener = request.param
    return opened


@pytest.fixture(scope="module")
def decoder(random_model: LocalModel, opener: Opener) -> Decoder:
    return opener(random_model.model, random_model.tokenizer, 1024)


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, ...]]:
    draw = random.Random(1)
    lengths = (1, 2, 5, 17, 40, 40, 80, 160)
    # From 3 on: no control token.
    return [tuple(draw.choices(range(3, len(tiny_tokenizer)), k=n)) for n in lengths]


def request(prompt: tuple[int, ...], **sampling: Any) -> Request:
    return Request(prompt, Sampling(**({"max_tokens": 12} | sampling)))


@torch.inference_mode()
def next_logits(model: LocalModel, token_ids: tuple[int, ...]) -> torch.Tensor:
    """The oracle: one sequence, no cache, no padding."""
    return model.model(input_ids=torch.tensor([token_ids])).logits[0, -1].float()


def full_logprobs(
    model: LocalModel, prompt: tuple[int, ...], completion: Completion, temperature: float
) -> list[float]:
    """Log-probabilities of a completion in one forward pass."""
    sequence = torch.tensor([prompt + completion.token_ids])
    with torch.inference_mode():
        logits = model.model(input_ids=sequence).logits[0].float()
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return [
        float(logprobs[len(prompt) - 1 + index, token])
        for index, token in enumerate(completion.token_ids)
    ]


def test_greedy_equals_decoding_step_by_step_without_a_cache(
    random_model: LocalModel, decoder: Decoder, prompts: list[tuple[int, ...]]
) -> None:
    completions = decoder.complete([request(prompt) for prompt in prompts])
    for prompt, completion in zip(prompts, completions, strict=True):
        expected: list[int] = []
        while len(expected) < 12 and random_model.tokenizer.eos_token_id not in expected:
            expected.append(int(next_logits(random_model, (*prompt, *expected)).argmax()))
        assert list(completion.token_ids) == expected


def test_greedy_equals_the_librarys_own_generate(
    random_model: LocalModel, decoder: Decoder, prompts: list[tuple[int, ...]]
) -> None:
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    model: Any = random_model.model
    output = model.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=12)
    end = random_model.tokenizer.eos_token_id
    for row, completion in zip(output, decoder.complete(list(map(request, prompts))), strict=True):
        expected = row[width:].tolist()
        if end in expected:
            expected = expected[: expected.index(end) + 1]
        assert list(completion.token_ids) == expected


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 1.7])
def test_logprobs_are_those_of_a_full_forward_at_the_temperature(
    random_model: LocalModel, decoder: Decoder, prompts: list[tuple[int, ...]], temperature: float
) -> None:
    requests = [request(p, temperature=temperature, seed=n) for n, p in enumerate(prompts)]
    for prompt, completion in zip(prompts, decoder.complete(requests), strict=True):
        expected = full_logprobs(random_model, prompt, completion, temperature or 1.0)
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
        assert len(completion.logprobs) == len(completion.token_ids)


def test_company_and_order_change_no_token(
    random_model: LocalModel,
    opener: Opener,
    decoder: Decoder,
    prompts: list[tuple[int, ...]],
) -> None:
    requests = [request(p, temperature=1.0, seed=n, max_tokens=20) for n, p in enumerate(prompts)]
    alone = [decoder.complete([one])[0] for one in requests]
    together = decoder.complete(requests)
    backwards = decoder.complete(requests[::-1])[::-1]
    small = opener(random_model.model, random_model.tokenizer, 1024, tokens_per_batch=90)
    in_parts = small.complete(requests)
    for one, *others in zip(alone, together, backwards, in_parts, strict=True):
        for other in others:
            assert other.token_ids == one.token_ids
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)
            assert (other.text, other.stop_reason) == (one.text, one.stop_reason)


def test_equal_prompts_are_prefilled_once_and_drawn_apart(
    random_model: LocalModel, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = PaddedDecoder(random_model.model, random_model.tokenizer, 1024)
    prompt, other = prompts[4], prompts[6]
    order = [prompt, other, prompt, prompt, other, prompt]
    requests = [request(p, temperature=1.0, seed=n % 4) for n, p in enumerate(order)]
    alone = [decoder.complete([one])[0] for one in requests]
    widths: list[torch.Size] = []
    forward = random_model.model.forward

    def counted(*arguments: Any, **named: Any) -> Any:
        widths.append(named["input_ids"].shape)
        return forward(*arguments, **named)

    monkeypatch.setattr(random_model.model, "forward", counted)
    together = decoder.complete(requests)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert widths[0] == (2, 80)
    assert all(width[1] == 1 for width in widths[1:])
    assert together[0].token_ids != together[2].token_ids
    assert together[1].token_ids == decoder.complete([requests[1]])[0].token_ids


def test_max_tokens_does_not_change_the_draw(
    decoder: Decoder, prompts: list[tuple[int, ...]]
) -> None:
    lengths = (1, 3, 16, 40)
    completions = decoder.complete(
        [request(prompts[3], temperature=1.5, seed=9, max_tokens=n) for n in lengths]
    )
    for length, completion in zip(lengths, completions, strict=True):
        assert completion.token_ids == completions[-1].token_ids[:length]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_draws_follow_the_distribution(
    random_model: LocalModel, decoder: Decoder, prompts: list[tuple[int, ...]], temperature: float
) -> None:
    count = 4000
    prompt = prompts[4]
    sampling = {"max_tokens": 1, "temperature": temperature}
    completions = decoder.complete([request(prompt, seed=n, **sampling) for n in range(count)])
    counts = Counter(completion.token_ids[0] for completion in completions)
    shares = torch.softmax(next_logits(random_model, prompt) / temperature, dim=-1).double()
    frequent = [int(token) for token in torch.nonzero(shares * count >= 8).flatten()]
    assert len(frequent) >= 5
    observed = [counts[token] for token in frequent]
    expected = [float(shares[token]) * count for token in frequent]
    observed.append(count - sum(observed))
    expected.append(count - sum(expected))
    chi_square = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    degrees = len(expected) - 1
    # The mean is ``degrees``, the deviation sqrt(2 * degrees); 5 of them are one in millions.
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


def test_a_token_without_probability_is_never_drawn() -> None:
    shares = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]] * 4).log()
    points = torch.tensor([0.0, 0.5, 0.49, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(shares, points).tolist() == [1, 3, 1, 3]


def test_a_stop_string_ends_the_completion_and_is_kept(
    random_model: LocalModel, decoder: Decoder, prompts: list[tuple[int, ...]]
) -> None:
    free = decoder.complete([request(prompts[3], temperature=1.5, seed=2, max_tokens=40)])[0]
    tokenizer = random_model.tokenizer
    assert free.stop_reason is StopReason.LENGTH
    for start, end in ((4, 6), (9, 12), (20, 21)):
        stop = tokenizer.decode(list(free.token_ids[start:end]))
        sampling = {"temperature": 1.5, "seed": 2, "max_tokens": 40, "stop": ("\x07never", stop)}
        stopped = decoder.complete([request(prompts[3], **sampling)])[0]
        assert stopped.stop_reason is StopReason.STOP_STRING
        length = len(stopped.token_ids)
        assert length <= end
        assert stopped.token_ids == free.token_ids[:length]
        assert stop in stopped.text
        assert stop not in tokenizer.decode(list(stopped.token_ids[:-1]))


class Scripted:
    """Stands for a model: the next token is the next of a fixed sequence."""

    def __init__(self, inner: Any, script: list[int]) -> None:
        self._inner, self._script, self._step = inner, script, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, **named: Any) -> Any:
        output = self._inner(**named)
        output.logits[:, -1] = -50.0
        output.logits[:, -1, self._script[self._step]] = 50.0
        self._step += 1
        return output


def say(model: LocalModel, text: str, **sampling: Any) -> Completion:
    script = model.encode(text) + [model.tokenizer.eos_token_id] * 2
    scripted: Any = Scripted(model.model, script)
    decoder = PaddedDecoder(scripted, model.tokenizer, 1024)
    return decoder.complete([request((5, 6), **({"max_tokens": 200} | sampling))])[0]


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("a</query>b", "</query>", "a</query>"),
        ("a</query", "</query>", "a</query"),
        ("caféé", "é", "café"),  # two bytes, two tokens
        ("漢字漢", "字", "漢字"),
        ("ab" * 30 + "XYZ" + "tail", "XYZ", "ab" * 30 + "XYZ"),
        ("x\n\ny", "\n\n", "x\n\n"),
    ],
)
def test_stop_strings_over_many_tokens(
    random_model: LocalModel, text: str, stop: str, kept: str
) -> None:
    completion = say(random_model, text, stop=(stop,))
    assert completion.text == kept
    stopped = stop in kept
    reason = StopReason.STOP_STRING if stopped else StopReason.END_OF_SEQUENCE
    assert completion.stop_reason is reason


def test_the_end_token_is_kept_and_nothing_follows(random_model: LocalModel) -> None:
    completion = say(random_model, "a b")
    assert completion.stop_reason is StopReason.END_OF_SEQUENCE
    end = random_model.tokenizer.eos_token_id
    assert completion.token_ids == (*random_model.encode("a b"), end)
    assert completion.text == "a b"


def test_the_models_further_end_tokens_end_it_too(
    random_model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = random_model.encode("b")[0]
    config = random_model.model.generation_config
    monkeypatch.setattr(config, "eos_token_id", [random_model.tokenizer.eos_token_id, other])
    completion = say(random_model, "abc")
    assert completion.stop_reason is StopReason.END_OF_SEQUENCE
    assert completion.token_ids[-1] == other


def test_length_limits(
    random_model: LocalModel, opener: Opener, prompts: list[tuple[int, ...]]
) -> None:
    [short] = opener(random_model.model, random_model.tokenizer, 1024).complete(
        [request(prompts[3], max_tokens=3, temperature=1.0)]
    )
    assert (len(short.token_ids), short.stop_reason) == (3, StopReason.LENGTH)
    [clamped] = opener(random_model.model, random_model.tokenizer, 20).complete(
        [request(prompts[3], max_tokens=100, temperature=1.0)]
    )
    assert (len(clamped.token_ids), clamped.stop_reason) == (3, StopReason.LENGTH)
    assert clamped.token_ids == short.token_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ()}, "0 tokens"),
        ({"prompt": (5,) * 1024}, "1024 tokens leaves no room in a context of 1024"),
        ({"sampling": Sampling(0)}, "max_tokens 0"),
        ({"sampling": Sampling(4, temperature=-1.0)}, "temperature -1.0"),
        ({"sampling": Sampling(4, temperature=float("nan"))}, "temperature nan"),
        ({"sampling": Sampling(4, stop=("a", ""))}, "empty stop string"),
    ],
)
def test_what_cannot_be_decoded_is_refused(
    decoder: Decoder, change: dict[str, Any], message: str
) -> None:
    good = request((5, 6))
    with pytest.raises(InputError, match=message) as refusal:
        decoder.complete([good, dataclasses.replace(good, **change)])
    assert "\n" not in str(refusal.value)


def test_nothing_to_do(decoder: Decoder) -> None:
    assert decoder.complete([]) == []


def test_decoding_leaves_a_model_in_training_as_it_was(
    random_model: LocalModel,
    decoder: Decoder,
    prompts: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = decoder.complete([request(prompts[3])])
    for layer in random_model.model.model.layers:
        monkeypatch.setattr(layer.self_attn, "attention_dropout", 0.9)
    random_model.model.train()
    try:
        assert decoder.complete([request(prompts[3])]) == before
        assert random_model.model.training
        assert all(parameter.requires_grad for parameter in random_model.model.parameters())
        loss = random_model.model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum()
        assert loss.requires_grad
    finally:
        random_model.model.eval()
