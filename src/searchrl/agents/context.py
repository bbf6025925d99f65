"""Methods that hand the generator a context without a searching model.

``direct`` hands over nothing, ``rag`` the passages of one retrieval with the question (naive RAG,
the baseline that Gain Beyond RAG is measured against), ``oracle`` the gold passages themselves,
which is the ceiling for any searcher with the same generator. ``RetrievalOnlyAgent`` hands over
what another method retrieved, such as Search-R1's passages: the s3 paper's Search-R1 (Ret).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from searchrl.agents.agent import Agent, Draw
from searchrl.agents.episode import Action, ActionKind, Episode, Turn
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval.protocol import Hit, Retriever


class DirectAgent:
    """No retrieval: the generator answers from what it knows."""

    name = "direct"

    async def run(self, question: Question, draw: Draw) -> Episode:
        """An episode with an empty context."""
        return Episode(question, self.name)


class RagAgent:
    """Naive RAG: the question is the query, its top passages are the context.

    Args:
        retriever: where to search.
        k: passages handed over; 3 in the s3 paper.
    """

    name = "rag"

    def __init__(self, retriever: Retriever, k: int) -> None:
        self._retriever = retriever
        self._k = k

    async def run(self, question: Question, draw: Draw) -> Episode:
        """An episode whose context is one retrieval."""
        started = time.perf_counter()
        episode = Episode(question, self.name)
        try:
            [hits] = await self._retriever.search([question.query], self._k)
        except InfrastructureError as error:
            episode.fail(error)
        else:
            query = Action(ActionKind.SEARCH, query=question.query)
            episode.initial = Turn(query, tuple(hits))
            episode.context = tuple(hits)
        episode.seconds = time.perf_counter() - started
        return episode


class OracleAgent:
    """Exactly the gold passages, in the order of the reasoning.

    Args:
        passages: the corpus by id.
    """

    name = "oracle"

    def __init__(self, passages: Mapping[str, Passage]) -> None:
        self._passages = passages

    async def run(self, question: Question, draw: Draw) -> Episode:
        """An episode whose context is the gold passages.

        Raises:
            InputError: the question names no gold passages, or one the corpus does not have.
        """
        if not question.gold_ids:
            raise InputError(
                f"question {question.id!r} has no supporting_ids; the oracle method needs them"
            )
        missing = [gold for gold in question.gold_ids if gold not in self._passages]
        if missing:
            raise InputError(f"question {question.id!r}: no passage {missing[0]!r} in the corpus")
        context = tuple(Hit(self._passages[gold], 0.0) for gold in question.gold_ids)
        return Episode(question, self.name, context=context)


class RetrievalOnlyAgent:
    """Another method's passages without its answer, for the generator to answer from.

    Args:
        agent: a method that answers itself.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.name = f"{agent.name}_ret"

    async def run(self, question: Question, draw: Draw) -> Episode:
        """The other method's episode, its answer left to the generator."""
        episode = await self._agent.run(question, draw)
        return replace(episode, method=self.name, answer=None, answers_itself=False)
