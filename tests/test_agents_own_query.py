"""A question that retrieval is asked in other words: every method's first search uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from searchrl.agents.agent import Draw
from searchrl.agents.context import RagAgent
from searchrl.agents.deep_retrieval import DeepRetrievalAgent, DeepRetrievalOptions
from searchrl.agents.generator import Generator
from searchrl.agents.ircot import IrcotAgent, IrcotOptions
from searchrl.agents.s3 import S3Agent, S3Options
from searchrl.data.questions import Question
from searchrl.rewards.rag_cache import RagCache
from searchrl.training.precompute import precompute
from tests.fakes import ListRetriever, ScriptedModel, passages

ASKED = "Which drug?\nOptions:\nA: aspirin\nB: zinc"
QUESTION = Question("q", ASKED, ("A: aspirin",), "medqa", own_query="Which drug?")
Open = Callable[[ScriptedModel, ListRetriever], Any]
METHODS: dict[str, tuple[Open, str]] = {
    "rag": (lambda model, retriever: RagAgent(retriever, 3), ""),
    "s3": (
        lambda model, retriever: S3Agent(model, retriever, S3Options(style="brief")),
        "<search_complete>True</search_complete>",
    ),
    "ircot": (
        lambda model, retriever: IrcotAgent(model, retriever, IrcotOptions(style="brief")),
        "So the answer is: A.",
    ),
    "ircot without a fact": (
        lambda model, retriever: IrcotAgent(model, retriever, IrcotOptions(style="brief")),
        "So it is.",
    ),
    "deep_retrieval": (
        lambda model, retriever: DeepRetrievalAgent(
            model, retriever, DeepRetrievalOptions(kind="deep_retrieval", style="brief")
        ),
        "no query",
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_first_search_leaves_the_options_out_and_the_prompt_does_not(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    opened, said = METHODS[name]
    model, retriever = ScriptedModel(tiny_tokenizer, [said]), ListRetriever(passages(60))
    episode = asyncio.run(opened(model, retriever).run(QUESTION, Draw()))
    assert {query for query, _ in retriever.calls} == {"Which drug?"}
    assert next(episode.retrievals()).action.query == "Which drug?"
    assert all("aspirin" in tiny_tokenizer.decode(prompt) for prompt in model.prompts)


def test_naive_rag_of_the_reward_does_too(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, retriever = ScriptedModel(tiny_tokenizer, ["A"]), ListRetriever(passages(9))
    generator, cache = Generator(model, "scripted"), RagCache.open(tmp_path / "cache.jsonl")
    asyncio.run(precompute([QUESTION], cast(Any, retriever), 3, generator, None, cache))
    assert retriever.calls == [("Which drug?", 3)]
    assert "aspirin" in tiny_tokenizer.decode(model.prompts[0])
