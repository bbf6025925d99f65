"""The demonstrations of other methods' formats are what the methods' own agents see and say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from scripts.tiny_models import lessons
from scripts.tiny_models.format_lessons import HOPS, LESSONS, PASSAGES, SEARCHES, K
from searchrl.agents.agent import Draw
from searchrl.agents.deep_retrieval import DeepRetrievalAgent, DeepRetrievalOptions
from searchrl.agents.episode import ActionKind, Episode
from searchrl.agents.ircot import IrcotAgent, IrcotOptions
from searchrl.agents.search_o1 import SearchO1Agent, SearchO1Options
from searchrl.agents.search_r1 import SearchR1Agent, SearchR1Options
from searchrl.data.questions import Question
from searchrl.data.synthwiki import World
from searchrl.models.protocol import Completion, Sampling, StopReason
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Hit
from searchrl.training.supervised import Example
from tests.fakes import ScriptedModel

SEED = 11
_INDEXES: dict[int, Bm25Retriever] = {}


@pytest.fixture(autouse=True)
def _small_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "_SIZES", (100,))
    monkeypatch.setattr(lessons, "_SEARCHED_WORLDS", 1)


def index(world: World) -> Bm25Retriever:
    if world.seed not in _INDEXES:
        _INDEXES[world.seed] = Bm25Retriever(list(world.passages()))
    return _INDEXES[world.seed]


def search(world: World, query: str) -> list[Hit]:
    return asyncio.run(index(world).search([query], K))[0]


class Follower(ScriptedModel):
    """Says what a demonstration says after exactly the tokens it was shown."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, demonstrations: Sequence[Example]
    ) -> None:
        super().__init__(tokenizer, [])
        self._demonstrations = demonstrations

    async def complete(self, prompt_token_ids: Sequence[int], sampling: Sampling) -> Completion:
        prompt = tuple(prompt_token_ids)
        following = [d for d in self._demonstrations if d.token_ids[: len(prompt)] == prompt]
        assert following, self.tokenizer.decode(prompt)
        rest = zip(following[0].token_ids, following[0].weights, strict=True)
        said: list[int] = []
        for token, weight in islice(rest, len(prompt), None):
            if not weight:
                break
            said.append(token)
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        assert len(said) <= sampling.max_tokens
        ended = said[-1] == self.tokenizer.eos_token_id
        # What is not ended by its own token is ended by what generation stops on.
        assert ended or text.endswith(sampling.stop)
        reason = StopReason.END_OF_SEQUENCE if ended else StopReason.STOP_STRING
        return Completion(tuple(said), (0.0,) * len(said), text, reason)


def agents() -> dict[str, Callable[[Any, Any], Any]]:
    tight = {"style": "brief", "max_response_tokens": 64}
    search_r1 = SearchR1Options(
        kind="search_r1",
        style="brief",
        k=K,
        max_turns=SEARCHES,
        announce_budget=False,
        max_context_tokens=1_024,
        max_observation_tokens=300,
        max_response_tokens=64,
    )
    deep = DeepRetrievalOptions(kind="deep_retrieval", style="brief", max_response_tokens=64)
    ircot = IrcotOptions(
        k=K, max_retrievals=SEARCHES, max_passages=PASSAGES, style="brief", max_response_tokens=40
    )
    search_o1 = SearchO1Options(k=K, max_searches=SEARCHES, max_reading_tokens=96, **tight)
    return {
        "search_r1": lambda model, found: SearchR1Agent(model, found, search_r1),
        "r1": lambda model, found: SearchR1Agent(
            model, found, search_r1.model_copy(update={"search": False})
        ),
        "deep_retrieval": lambda model, found: DeepRetrievalAgent(model, found, deep),
        "ircot": lambda model, found: IrcotAgent(model, found, ircot),
        "search_o1": lambda model, found: SearchO1Agent(model, found, search_o1),
    }


def replayed(
    name: str, tokenizer: PreTrainedTokenizerFast, right: float, count: int = 3
) -> Iterator[tuple[Question, Episode]]:
    """The agent's episodes on the first questions of a stream, said by its demonstrations."""
    stream = LESSONS[name](tokenizer, SEED, search, right)
    model = Follower(tokenizer, list(islice(stream, (SEARCHES + 1) * count)))
    # A stream draws between questions; the questions of one world come twenty at a time.
    for _, world, question in islice(lessons.asked(SEED, HOPS), count):
        agent = agents()[name](model, index(world))
        yield question, asyncio.run(agent.run(question, Draw()))


def test_every_format_has_its_agent() -> None:
    assert LESSONS.keys() == agents().keys()


@pytest.mark.parametrize("right", [1.0, 0.3])
@pytest.mark.parametrize("name", LESSONS)
def test_an_agent_is_asked_and_read_as_its_model_was_taught(
    name: str, right: float, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for _, episode in replayed(name, tiny_tokenizer, right):
        assert episode.error is None
        assert all(turn.action.kind is not ActionKind.INVALID for turn in episode.turns)
        assert all(turn.well_formed in (True, None) for turn in episode.turns)
        assert episode.turns


@pytest.mark.pipeline
@pytest.mark.parametrize("name", ["search_r1", "search_o1", "ircot"])
def test_a_good_demonstrator_finds_and_answers_and_a_mediocre_one_seldom(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def found(question: Question, episode: Episode) -> bool:
        if episode.answers_itself:
            return episode.answer == question.answers[0]
        return episode.gold_recall == 1

    good = [found(*pair) for pair in replayed(name, tiny_tokenizer, 1.0, 12)]
    mediocre = [found(*pair) for pair in replayed(name, tiny_tokenizer, 0.0, 12)]
    assert sum(good) >= 0.8 * len(good)
    assert sum(mediocre) <= sum(good) - 4
