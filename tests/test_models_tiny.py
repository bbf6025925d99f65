"""The shipped models: small, loadable by anyone, and able to do what the demo needs of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from searchrl.agents.agent import Draw
from searchrl.agents.generator import Generator
from searchrl.agents.s3 import S3Agent
from searchrl.data.questions import Question
from searchrl.data.synthwiki import World
from searchrl.models.local import LocalModel, load_model
from searchrl.models.tokenizers import TINY
from searchrl.recipe_file import load_recipe
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Hit
from searchrl.rewards.text import answer_span

WORLD = World(4_900, 1_000)


@pytest.fixture(scope="module")
def generator() -> Generator:
    options = load_recipe("tiny-grpo").generator
    return Generator(load_model("tiny-generator"), "tiny-generator", options.style, 40)


def accuracy(generator: Generator, asked: list[tuple[Question, list[Hit]]]) -> float:
    async def answers() -> list[str]:
        return await asyncio.gather(*(generator.answer(q.text, hits) for q, hits in asked))

    given = asyncio.run(answers())
    right = [answer_span(text, q.answers) for text, (q, _) in zip(given, asked, strict=True)]
    return sum(right) / len(right)


def gold_hits(question: Question, world: World = WORLD) -> list[Hit]:
    return [Hit(world.passage(entity.index), 0.0) for entity in world.gold_entities(question)]


def test_weights_are_small_and_their_making_is_on_record() -> None:
    size = sum(file.stat().st_size for file in TINY.rglob("*") if file.is_file())
    assert size < 12_000_000
    for name in ("searcher", "generator"):
        facts = json.loads((TINY / name / "training.json").read_text())
        assert {"command", "seed", "steps", "tokens", "worlds"} <= facts.keys()
        assert " /" not in facts["command"]


@pytest.mark.parametrize("name", ["searcher", "generator"])
def test_transformers_loads_them(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY / name)
    tokenizer = AutoTokenizer.from_pretrained(TINY / name)
    assert model.config.model_type == "qwen3"
    assert model.num_parameters() < 3_000_000
    for tag in ("<query>", "</query>", "<information>", "</important_info>", "<search_complete>"):
        assert len(tokenizer.encode(tag)) == 1
        assert tag not in tokenizer.all_special_tokens


@pytest.mark.pipeline
@pytest.mark.parametrize("size", [300, 4_000])
def test_the_generator_answers_from_gold_passages(generator: Generator, size: int) -> None:
    world = World(4_900, size)
    asked = [(q, gold_hits(q, world)) for q in world.questions(60, stream=1)]
    assert accuracy(generator, asked) >= 0.85


@pytest.mark.pipeline
def test_the_generator_fails_without_evidence(generator: Generator) -> None:
    questions = list(WORLD.questions(60, stream=2, hops={2: 1.0}))
    assert accuracy(generator, [(q, []) for q in questions]) <= 0.05
    assert accuracy(generator, [(q, gold_hits(q)[:1]) for q in questions]) <= 0.05


@pytest.mark.pipeline
def test_the_searcher_knows_the_protocol_and_searches_badly() -> None:
    searcher: LocalModel = load_model("tiny-searcher")
    retriever = Bm25Retriever(list(WORLD.passages()))
    agent = S3Agent(searcher, retriever, load_recipe("tiny-grpo").agent)
    questions = list(WORLD.questions(40, stream=3, hops={2: 1.0}))

    async def run() -> tuple[float, float]:
        episodes = await asyncio.gather(
            *(agent.run(q, Draw(1.0, seed)) for seed, q in enumerate(questions))
        )
        finished = [episode.end.value == "finished" for episode in episodes]
        complete = [episode.gold_recall == 1 for episode in episodes]
        return sum(finished) / len(finished), sum(complete) / len(complete)

    finished, complete = asyncio.run(run())
    assert finished >= 0.8
    assert 0.05 <= complete <= 0.6
    assert Path(TINY / "searcher" / "model.safetensors").is_file()
