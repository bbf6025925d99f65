from __future__ import annotations

import asyncio
import copy
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from searchrl.errors import InputError
from searchrl.models.drawing import Row
from searchrl.models.local import LocalModel, load_model
from searchrl.models.protocol import Completion, Message, Sampling

SAMPLING = Sampling(6, temperature=1.0)


@pytest.fixture
def model(random_model: LocalModel) -> LocalModel:
    return LocalModel(random_model.model, random_model.tokenizer)


@pytest.fixture
def sizes(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of rows that begin together, each time some do."""
    batches: list[int] = []
    admit = model._decoder.admit

    def counted(rows: Sequence[Row]) -> int:
        batches.append(len(rows))
        return admit(rows)

    monkeypatch.setattr(model._decoder, "admit", counted)
    return batches


async def ask(model: LocalModel, first: int, turns: int = 1) -> list[int]:
    token_ids = [first, 7, 8]
    for turn in range(turns):
        token_ids += (await model.complete(token_ids, Sampling(3, 1.0, seed=turn))).token_ids
        for _ in range(turn):
            await asyncio.sleep(0)
    return token_ids


def test_tokens_that_are_remembered_are_the_callers_to_change(model: LocalModel) -> None:
    chat = [Message("user", "Who rows the ferry?")]
    for ask in (lambda: model.encode("Who rows the ferry?"), lambda: model.render_chat(chat)):
        first = ask()
        expected = list(first)
        first.clear()
        assert ask() == expected != []


def test_what_is_asked_together_is_decoded_together(model: LocalModel, sizes: list[int]) -> None:
    async def together() -> list[list[int]]:
        return await asyncio.gather(*(ask(model, 10 + n, turns=2) for n in range(9)))

    answers = asyncio.run(together())
    assert sizes == [9, 9]
    assert answers == [asyncio.run(ask(model, 10 + n, turns=2)) for n in range(9)]


def test_ctrl_c_is_told_once(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model._decoder, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(ask(model, 10))
    gc.collect()
    assert caplog.text == ""


def test_a_batch_waits_for_tasks_that_are_a_few_steps_behind(
    model: LocalModel, sizes: list[int]
) -> None:
    async def late(steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        await model.complete([5, 6], SAMPLING)

    async def together() -> None:
        await asyncio.gather(*(late(2 * n) for n in range(4)))

    asyncio.run(together())
    assert sizes == [4]


def test_batches_are_the_same_every_time(model: LocalModel, sizes: list[int]) -> None:
    async def together() -> None:
        await asyncio.gather(*(ask(model, 10 + n, turns=1 + n % 3) for n in range(6)))

    asyncio.run(together())
    first = sizes.copy()
    sizes.clear()
    asyncio.run(together())
    assert sizes == first == [6, 4, 2]


@pytest.mark.parametrize("place", ["admit", "advance"])
@pytest.mark.parametrize("kind", [RuntimeError, IndexError, ValueError, KeyError])
def test_a_failure_of_the_decoder_reaches_everyone_who_waits(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], place: str
) -> None:
    def fail(*_: Sequence[Row]) -> None:
        raise kind("out of memory")

    async def together() -> list[object]:
        asked = [model.complete([5, 6], SAMPLING) for _ in range(4)]
        with monkeypatch.context() as patch:
            patch.setattr(model._decoder, place, fail)
            results = list(await asyncio.gather(*asked, return_exceptions=True))
        results.append(await model.complete([5, 6], SAMPLING))
        return results

    *failures, later = asyncio.run(asyncio.wait_for(together(), timeout=20))
    assert [type(failure) for failure in failures] == [kind] * 4
    assert isinstance(later, Completion)


def test_a_finished_turn_goes_on_while_others_are_decoded(
    model: LocalModel, sizes: list[int]
) -> None:
    told: list[str] = []

    async def speak(name: str, first: int, *lengths: int) -> list[int]:
        token_ids = [first, 7, 8]
        for length in lengths:
            # Hotter than usual, so that no end token cuts an output short.
            said = await model.complete(token_ids, Sampling(length, 3.0, seed=first))
            token_ids += said.token_ids
            told.append(name)
        return token_ids

    async def together() -> list[list[int]]:
        return list(await asyncio.gather(speak("short", 10, 2, 2, 2), speak("long", 11, 40)))

    answers = asyncio.run(together())
    assert told == ["short", "short", "short", "long"]
    assert sizes == [2, 1, 1]
    alone = [asyncio.run(speak("short", 10, 2, 2, 2)), asyncio.run(speak("long", 11, 40))]
    assert answers == alone


def test_a_bad_request_fails_alone(model: LocalModel, sizes: list[int]) -> None:
    async def together() -> list[object]:
        asked = [model.complete([5] * n, SAMPLING) for n in (3, 1024, 4)]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    first, refused, last = asyncio.run(together())
    assert isinstance(first, Completion)
    assert isinstance(last, Completion)
    assert isinstance(refused, InputError)
    assert "1024 tokens" in str(refused)
    assert sizes == [2]


def test_who_gave_up_is_not_decoded_for(model: LocalModel, sizes: list[int]) -> None:
    async def together() -> Completion:
        tasks = [asyncio.create_task(model.complete([5, n], SAMPLING)) for n in (6, 7)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        return await tasks[1]

    assert isinstance(asyncio.run(together()), Completion)
    assert sizes == [1]


def test_the_protocol_side(model: LocalModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert model.max_length == 1024
    assert tiny_tokenizer.decode(model.encode("a <|im_end|>")) == "a <|im_end|>"
    assert model.render_chat([Message("user", "a")])[0] == tiny_tokenizer.convert_tokens_to_ids(
        "<|im_start|>"
    )


@pytest.fixture
def saved(random_model: LocalModel, tmp_path: Path) -> Path:
    random_model.model.save_pretrained(tmp_path)
    random_model.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_model_answers_as_before(random_model: LocalModel, saved: Path) -> None:
    loaded = load_model(str(saved))
    answers = [asyncio.run(ask(m, 20, turns=3)) for m in (loaded, random_model)]
    assert answers[0] == answers[1]
    assert not loaded.model.training
    assert loaded.render_chat([Message("user", "a")]) == random_model.render_chat(
        [Message("user", "a")]
    )
    plain = AutoModelForCausalLM.from_pretrained(saved)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, random_model.model.state_dict()[name])
    assert load_model(str(saved), dtype="bfloat16").model.dtype is torch.bfloat16


def refusal(name: str, **settings: str) -> str:
    with pytest.raises(InputError) as error:
        load_model(name, **settings)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"model {name!r}: ")
    return message


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    assert "no such directory" in refusal(str(tmp_path / "none"))
    assert "no such directory" in refusal("./none")
    assert "tiny-searcher, tiny-generator" in refusal("tiny-nothing")


def test_a_directory_without_everything_is_refused(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert "cannot be loaded" in refusal(str(tmp_path))
    tiny_tokenizer.save_pretrained(tmp_path)
    assert "cannot be loaded" in refusal(str(tmp_path))


def test_a_directory_without_weights_is_refused(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert "cannot be loaded" in refusal(str(saved))


def test_pickled_weights_are_refused(saved: Path, random_model: LocalModel) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(random_model.model.state_dict(), saved / "pytorch_model.bin")
    assert "cannot be loaded" in refusal(str(saved))


def test_cut_off_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "cannot be loaded" in refusal(str(saved))


def test_weights_that_lack_a_part_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (saved / "config.json").write_text(json.dumps(config))
    assert "weights lack 'model.layers.2." in refusal(str(saved))


def test_a_tokenizer_without_a_chat_template_is_refused(
    saved: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    (saved / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(saved)
    assert "no chat template" in refusal(str(saved))


def test_code_in_a_model_directory_is_never_run(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "own.Config"}}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "own.py").write_text("raise SystemExit('was run')")
    # Were there a question on the terminal, this would fail: it has no terminal to ask on.
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    assert "cannot be loaded" in refusal(str(saved))


def test_unknown_dtypes_and_devices_are_refused(saved: Path) -> None:
    assert "no dtype 'floaty'" in refusal(str(saved), dtype="floaty")
    assert "no dtype 'nn'" in refusal(str(saved), dtype="nn")
    assert "cannot be loaded" in refusal(str(saved), device="abacus")
