from __future__ import annotations

import asyncio

import pytest
from transformers import PreTrainedTokenizerFast

from searchrl.agents.generator import Generator, strip_reasoning
from searchrl.agents.prompts import reader_prompt, render_context
from searchrl.errors import InfrastructureError
from searchrl.models.protocol import Sampling
from searchrl.retrieval.protocol import Hit
from tests.fakes import ScriptedModel, passages

HITS = tuple(Hit(passage, 1.0) for passage in passages(3))
Tokenizer = PreTrainedTokenizerFast


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris", "Paris"),
        (" Paris \n", "Paris"),
        ("<think>hm</think>\n\nParis", "Paris"),
        ("hm</think> Paris", "Paris"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>never ends", ""),
        ("  <think>never ends", ""),
        ("Paris <think>never ends", "Paris"),
        ("<think>a</think>Paris<think>b", "Paris"),
        ("<think></think>", ""),
        ("", ""),
    ],
)
def test_reasoning_is_no_part_of_an_answer(text: str, answer: str) -> None:
    assert strip_reasoning(text) == answer


def test_the_answer_to_a_rendered_prompt(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, ["<think>so</think> Paris"])
    generator = Generator(model, "m", "brief", max_answer_tokens=50)
    assert asyncio.run(generator.answer("Where?", HITS)) == "Paris"
    assert model.prompts == [model.render_chat(reader_prompt("Where?", HITS, "brief"))]
    assert model.samplings == [Sampling(50)]


def test_equal_requests_at_a_time_are_answered_once(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, ["one", "two", "three"])
    generator = Generator(model, "m", "brief")

    async def together() -> list[str]:
        asked = [("a", HITS), ("a", HITS), ("b", HITS), ("a", HITS)]
        return await asyncio.gather(*(generator.answer(*request) for request in asked))

    assert asyncio.run(together()) == ["one", "one", "two", "one"]
    assert len(model.prompts) == 2
    # Nothing is remembered: a later request is a request.
    assert asyncio.run(generator.answer("a", HITS)) == "three"


def test_a_failure_reaches_everyone_and_is_not_remembered(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, ["one"], fail_at=0)
    generator = Generator(model, "m", "brief")

    async def together() -> list[str | BaseException]:
        asked = (generator.answer("a", HITS) for _ in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(result) for result in asyncio.run(together())] == [InfrastructureError] * 3
    assert len(model.prompts) == 1
    assert asyncio.run(generator.answer("a", HITS)) == "one"


def test_who_gives_up_does_not_take_the_answer_from_the_others(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, ["one"])
    generator = Generator(model, "m", "brief")

    async def together() -> str:
        tasks = [asyncio.create_task(generator.answer("a", HITS)) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        return await tasks[1]

    assert asyncio.run(together()) == "one"
    assert len(model.prompts) == 1


@pytest.mark.parametrize("style", ["brief", "full"])
def test_a_long_context_is_cut_to_its_budget(tiny_tokenizer: Tokenizer, style: str) -> None:
    model = ScriptedModel(tiny_tokenizer, ["one"])
    generator = Generator(model, "m", style, max_context_tokens=120)  # type: ignore[arg-type]
    long = [Hit(passage, 1.0) for passage in passages(3, words=500)]
    assert 90 < generator.context_tokens(long) <= 120
    assert [hit.passage.title for hit in generator.fit(long)] == ["Title 1", "Title 2", "Title 3"]
    assert generator.fit(HITS) == HITS
    asyncio.run(generator.answer("Where is the Where?", long))
    shown = tiny_tokenizer.decode(model.prompts[0])
    assert render_context(generator.fit(long)) in shown
    assert "Where is the Where?" in shown


@pytest.mark.parametrize("style", ["brief", "full"])
def test_a_context_is_cut_to_a_models_short_memory(tiny_tokenizer: Tokenizer, style: str) -> None:
    model = ScriptedModel(tiny_tokenizer, ["one"], max_length=500)
    generator = Generator(model, "m", style, max_answer_tokens=60)  # type: ignore[arg-type]
    long = [Hit(passage, 1.0) for passage in passages(3, words=500)]
    assert asyncio.run(generator.answer("Where is the Where?", long)) == "one"
    assert 400 < len(model.prompts[0]) <= 440
    shown = tiny_tokenizer.decode(model.prompts[0])
    assert "Where is the Where?" in shown
    assert "(Title: Title 3)\ntext 3" in shown


def test_no_context(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, ["one"])
    generator = Generator(model, "m")
    assert asyncio.run(generator.answer("Where?", ())) == "one"
    assert generator.context_tokens(()) == 0


def test_the_fingerprint_names_all_that_answers_depend_on(tiny_tokenizer: Tokenizer) -> None:
    model = ScriptedModel(tiny_tokenizer, ["one"])
    generators = [
        Generator(model, "m"),
        Generator(model, "other"),
        Generator(model, "m", "brief"),
        Generator(model, "m", max_answer_tokens=9),
        Generator(model, "m", max_context_tokens=9),
    ]
    assert len({generator.fingerprint for generator in generators}) == len(generators)
    assert Generator(model, "m").fingerprint == generators[0].fingerprint
