from __future__ import annotations

import asyncio

import pytest

from searchrl.agents.agent import Agent, Draw
from searchrl.agents.context import DirectAgent, OracleAgent, RagAgent
from searchrl.agents.episode import ActionKind, EndReason, Episode
from searchrl.data.questions import Question
from searchrl.errors import InputError
from tests.fakes import FailingRetriever, ListRetriever, passages

QUESTION = Question("q1", "Where is it?", ("x",), gold_ids=("p3", "p1"))
PASSAGES = {passage.id: passage for passage in passages(5)}


def run(agent: Agent, question: Question = QUESTION) -> Episode:
    episode = asyncio.run(agent.run(question, Draw()))
    assert episode.method == agent.name
    assert episode.question is question
    assert (episode.segments, episode.turns, episode.answer) == ([], [], None)
    return episode


def test_direct_hands_over_nothing() -> None:
    episode = run(DirectAgent())
    assert episode.context == ()
    assert episode.initial is None
    assert episode.end is EndReason.FINISHED
    assert episode.gold_recall == 0.0


def test_rag_hands_over_one_retrieval_with_the_question() -> None:
    retriever = ListRetriever(passages(5))
    episode = run(RagAgent(retriever, 2))
    assert retriever.calls == [("Where is it?", 2)]
    assert [hit.passage.id for hit in episode.context] == ["p1", "p2"]
    assert episode.initial is not None
    assert episode.initial.action.kind is ActionKind.SEARCH
    assert episode.initial.action.query == "Where is it?"
    assert episode.initial.hits == episode.context
    assert episode.searches == 0
    assert episode.gold_recall == 0.5


def test_rag_with_a_dead_retriever_is_an_error() -> None:
    episode = run(RagAgent(FailingRetriever([]), 2))
    assert episode.end is EndReason.INFRASTRUCTURE
    assert episode.error == "retriever at example:2 did not answer"
    assert episode.context == ()
    assert episode.initial is None


def test_the_oracle_hands_over_the_gold_passages_in_order() -> None:
    episode = run(OracleAgent(PASSAGES))
    assert [hit.passage.id for hit in episode.context] == ["p3", "p1"]
    assert episode.gold_recall == 1.0


@pytest.mark.parametrize(
    ("gold", "message"),
    [((), "'q2' has no supporting_ids"), (("p1", "p9"), "'q2': no passage 'p9' in the corpus")],
)
def test_the_oracle_needs_its_passages(gold: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(OracleAgent(PASSAGES), Question("q2", "Where?", ("x",), gold_ids=gold))
