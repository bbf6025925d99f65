"""DeepRetrieval: one rewritten query, written after some thought (arXiv 2503.00223).

The model thinks, then writes a query as JSON. Its top passages are the context for the frozen
generator. Where no query can be read, the question itself is the query, so an episode always has
passages; the reward still tells the two apart.

Differs from the paper:
- The chat ends where the model speaks; the original also begins the model's message for it, with a
  sentence and an opened thinking block.
- The note on AND, OR and parentheses is ``boolean_queries``, off by default: it helps only with an
  engine that understands them.
- A query that cannot be read falls back to the question, as its evaluation in the s3 paper does
  not: there the question is dropped.
"""

from __future__ import annotations

import time
from typing import Literal

from pydantic import PositiveInt

from searchrl.agents.agent import Draw
from searchrl.agents.episode import Action, ActionKind, EndReason, Episode, Turn
from searchrl.agents.prompts import Style, deep_retrieval_prompt
from searchrl.agents.protocol import parse_deep_retrieval
from searchrl.agents.transcript import ask
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError
from searchrl.models.protocol import LanguageModel
from searchrl.options import Options
from searchrl.retrieval.protocol import Retriever


class DeepRetrievalOptions(Options):
    """DeepRetrieval: shape and budgets of an episode."""

    kind: Literal["deep_retrieval"]
    """Which method is trained."""
    k: PositiveInt = 3
    """Passages handed to the generator."""
    max_response_tokens: PositiveInt = 512
    """Budget of the model's one output."""
    boolean_queries: bool = False
    """Tell the model that the engine understands AND, OR and parentheses."""
    style: Style = "full"
    """Prompt style."""


class DeepRetrievalAgent:
    """Rewrites a question into one query with one model, and searches with it."""

    def __init__(
        self,
        model: LanguageModel,
        retriever: Retriever,
        options: DeepRetrievalOptions,
        name: str = "deep_retrieval",
    ) -> None:
        self.name = name
        self._model = model
        self._retriever = retriever
        self._options = options

    async def run(self, question: Question, draw: Draw) -> Episode:
        """Attempt one question."""
        started = time.perf_counter()
        episode = Episode(question, self.name)
        try:
            await self._rewrite(episode, draw)
            await self._search(episode)
        except InfrastructureError as error:
            episode.fail(error)
        episode.context = episode.gather()
        episode.seconds = time.perf_counter() - started
        return episode

    async def _rewrite(self, episode: Episode, draw: Draw) -> None:
        options = self._options
        messages = deep_retrieval_prompt(
            episode.question.text, options.style, options.boolean_queries
        )
        text = await ask(self._model, episode, messages, draw, options.max_response_tokens)
        if text is None:
            episode.end = EndReason.TRUNCATED
            return
        output = parse_deep_retrieval(text)
        episode.turns.append(Turn(output.action, well_formed=output.well_formed))

    async def _search(self, episode: Episode) -> None:
        """Retrieve with the rewritten query, or with the question where there is none."""
        turn = episode.turns[-1] if episode.turns else None
        if turn is None or turn.action.kind is not ActionKind.SEARCH:
            turn = episode.initial = Turn(Action(ActionKind.SEARCH, query=episode.question.query))
        [found] = await self._retriever.search([turn.action.query], self._options.k)
        turn.hits = tuple(found)
