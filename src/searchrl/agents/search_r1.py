"""Search-R1: one model that reasons, searches and answers (arXiv 2503.09516).

The model thinks, then writes a query or its answer; results are spliced in between its outputs, so
the whole episode is one assistant turn. The answer is what the model's own output was parsed to
while it ran; an episode that ends without one has no answer and earns nothing. The context is every
passage that was retrieved, so that another model can be asked to answer from the same search.

Without ``search`` this is the R1 baseline: one output that thinks and answers.

Differs from the paper:
- ``announce_budget``: the prompt says how many searches there are, and the last results that none
  is left. The original lets a model believe that it may go on; ``false`` restores that.
- ``max_turns`` is the number of searches, as in the original. Like there, an invalid output takes
  the place of one, and a query in the output after the last is not run.
- The note after an invalid output names no tag pair, so it cannot be read as an action or an
  answer. In the original it can: an episode without an answer is scored as if it had said "and".
- Instructions and question stay whole. Where the budget of the results is short, passages are cut
  one by one and the block stays closed; where the episode's is, it ends. The original cuts whole
  blocks at their end and the oldest tokens, the question among them, at the start.
- Output stops on closing tags and keeps them, instead of being cut and tokenised again.
- An empty query is invalid instead of being sent, and the first closing tag ends an output, whether
  of a search or an answer; the original lets a search win.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from searchrl.agents.agent import Draw
from searchrl.agents.episode import Action, ActionKind, EndReason, Episode, Turn
from searchrl.agents.prompts import Style, search_r1_prompt
from searchrl.agents.protocol import (
    STOP_SEARCH_R1,
    parse_search_r1,
    render_hits,
    render_observation,
)
from searchrl.agents.transcript import Transcript
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError
from searchrl.models.protocol import LanguageModel
from searchrl.options import Options
from searchrl.retrieval.protocol import Hit, Retriever

_NOTE = (
    "\nThat was neither a query nor an answer. Write a query between search tags, or the final "
    "answer between answer tags.\n"
)
_LAST_NOTE = "\nThat was not an answer. Write the final answer between answer tags.\n"
_NO_SEARCH_LEFT = "No search is left. Write the final answer between answer tags.\n\n"


class SearchR1Options(Options):
    """Search-R1: shape and budgets of an episode; the defaults are the paper's."""

    kind: Literal["search_r1"]
    """Which method is trained."""
    search: bool = True
    """Whether there is a search engine; without one this is the R1 baseline."""
    k: PositiveInt = 3
    """Passages a search."""
    max_turns: NonNegativeInt = 4
    """Searches at most."""
    max_prompt_tokens: PositiveInt = 2048
    """Budget of the prompt; a question that does not fit ends its episode."""
    max_response_tokens: PositiveInt = 500
    """Budget of one model output."""
    max_observation_tokens: PositiveInt = 500
    """Budget of one block of results; passages are cut to fit it."""
    max_context_tokens: PositiveInt = 4596
    """Budget of the whole episode: the original's 4,096 and one output."""
    announce_budget: bool = True
    """Tell the model how many searches it has, and when none is left."""
    style: Style = "full"
    """Prompt style."""

    @property
    def searches(self) -> int:
        """Searches at most: none without a search engine."""
        return self.max_turns if self.search else 0


class SearchR1Agent:
    """Runs Search-R1 episodes with one model and one retriever."""

    def __init__(
        self,
        model: LanguageModel,
        retriever: Retriever,
        options: SearchR1Options,
        name: str = "search_r1",
    ) -> None:
        self._model = model
        self._retriever = retriever
        self._options = options
        self._name = name
        self._stop = STOP_SEARCH_R1 if options.search else STOP_SEARCH_R1[1:]

    @property
    def name(self) -> str:
        """The method's name in tables and records."""
        return self._name

    async def run(self, question: Question, draw: Draw) -> Episode:
        """Attempt one question."""
        started = time.perf_counter()
        episode = Episode(question, self._name, answers_itself=True)
        options = self._options
        transcript = Transcript(
            self._model, episode, draw, options.max_response_tokens, options.max_context_tokens
        )
        try:
            await self._run(episode, transcript)
        except InfrastructureError as error:
            episode.fail(error)
        episode.context = episode.gather()
        episode.seconds = time.perf_counter() - started
        return episode

    async def _run(self, episode: Episode, transcript: Transcript) -> None:
        episode.end = EndReason.TRUNCATED
        transcript.open(self._prompt(episode.question.text))
        if len(episode.token_ids) > self._options.max_prompt_tokens:
            return
        for turns_left in range(self._options.searches, -1, -1):
            text = await transcript.speak(self._stop)
            if text is None:
                return
            output = parse_search_r1(text, self._options.search)
            turn = Turn(output.action, well_formed=output.well_formed)
            episode.turns.append(turn)
            if turn.action.kind is ActionKind.ANSWER:
                episode.answer, episode.end = turn.action.answer, EndReason.FINISHED
                return
            if turns_left == 0:
                # A query in the last output is not run.
                turn.action = Action(ActionKind.INVALID, query=turn.action.query)
                episode.end = EndReason.MAX_TURNS
                return
            if not await self._observe(transcript, turn, last=turns_left == 1):
                return

    def _prompt(self, question: str) -> str:
        options = self._options
        limit = options.searches if options.announce_budget or not options.search else None
        return search_r1_prompt(question, options.style, limit)

    async def _observe(self, transcript: Transcript, turn: Turn, last: bool) -> bool:
        """Answer the model's output; ``False`` when no further output would fit.

        Args:
            transcript: what the model reads.
            turn: its latest output, which gets the hits.
            last: only one more output follows.
        """
        announced = last and self._options.announce_budget
        if turn.action.kind is not ActionKind.SEARCH:
            return transcript.say(_LAST_NOTE if announced else _NOTE)
        notice = _NO_SEARCH_LEFT if announced else ""

        def render(hits: Sequence[Hit]) -> str:
            return render_observation(render_hits(hits, gap="")) + notice

        [found] = await self._retriever.search([turn.action.query], self._options.k)
        budget = self._options.max_observation_tokens + transcript.count(notice)
        shown = transcript.show(found, budget, render)
        turn.hits = shown or ()
        return shown is not None
