r"""Search-o1: a reasoning model that searches, and a second reading of what it finds (2501.05366).

The model reasons in one running stream and writes a query between markers when it lacks a fact.
The passages found are not shown to it: a second request, Reason-in-Documents, reads them beside
the reasoning so far and hands back what helps, which is spliced in between result markers. A query
asked before, or beyond the budget, is answered by a sentence that says so. The answer is what the
model boxes at the end; the context is every passage that was retrieved.

The defaults match Search-R1's budget, 4 searches of 3 passages. ``PUBLISHED`` is the paper's
setting for multi-hop questions: 10 searches of 10 passages, long outputs.

Differs from the paper:
- Passages of the retriever take the place of fetched web pages.
- Decoding is as the caller asks, greedy in evaluation (there: temperature 0.7, top-p 0.8).
- An output with neither a query nor a boxed answer ends the episode without an answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import NonNegativeInt, PositiveInt

from searchrl.agents.agent import Draw
from searchrl.agents.budget import fit_hits
from searchrl.agents.episode import Action, ActionKind, EndReason, Episode, Turn
from searchrl.agents.generator import strip_reasoning
from searchrl.agents.prompts import Style, reason_in_documents_prompt, search_o1_prompt
from searchrl.agents.protocol import STOP_SEARCH_O1, neutralise, parse_search_o1
from searchrl.agents.transcript import Transcript
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError
from searchrl.models.protocol import LanguageModel, Message, Sampling
from searchrl.options import Options
from searchrl.retrieval.protocol import Hit, Retriever
from searchrl.seeding import derive_seed

_LIMIT = "The limit of searches is exceeded. No further search is possible."
_ASKED_BEFORE = "This query was asked before. See its results above."
NOTHING = "No helpful information was found."
"""What a second reading hands back that found nothing, or wrote nothing."""
_FINAL = "**Final Information**"
_LAST_STEPS = 4


class SearchO1Options(Options):
    """Search-o1, a prompting baseline; the defaults match Search-R1's budget."""

    k: PositiveInt = 3
    """Passages a search."""
    max_searches: NonNegativeInt = 4
    """Searches at most."""
    max_turns: PositiveInt = 15
    """Outputs at most, those with refused queries included."""
    max_response_tokens: PositiveInt = 1024
    """Budget of one output."""
    max_reading_tokens: PositiveInt = 512
    """Budget of what Reason-in-Documents writes."""
    style: Style = "full"
    """Prompt style."""


PUBLISHED = SearchO1Options(
    k=10, max_searches=10, max_response_tokens=8192, max_reading_tokens=8192
)
"""The setting of the paper for multi-hop questions."""


class SearchO1Agent:
    """Runs Search-o1 episodes with one prompted model and one retriever."""

    def __init__(
        self,
        model: LanguageModel,
        retriever: Retriever,
        options: SearchO1Options,
        name: str = "search_o1",
    ) -> None:
        self.name = name
        self._model = model
        self._retriever = retriever
        self._options = options

    async def run(self, question: Question, draw: Draw) -> Episode:
        """Attempt one question."""
        started = time.perf_counter()
        episode = Episode(question, self.name, answers_itself=True)
        transcript = Transcript(self._model, episode, draw, self._options.max_response_tokens)
        try:
            await self._run(episode, transcript, draw)
        except InfrastructureError as error:
            episode.fail(error)
        episode.context = episode.gather()
        episode.seconds = time.perf_counter() - started
        return episode

    async def _run(self, episode: Episode, transcript: Transcript, draw: Draw) -> None:
        options = self._options
        prompt = search_o1_prompt(episode.question.text, options.style, options.max_searches)
        transcript.open(prompt)
        for _ in range(options.max_turns):
            text = await transcript.speak(STOP_SEARCH_O1)
            if text is None:
                episode.end = EndReason.TRUNCATED
                return
            turn = Turn(parse_search_o1(text))
            episode.turns.append(turn)
            if turn.action.kind is not ActionKind.SEARCH:
                episode.end = EndReason.FINISHED
                if turn.action.kind is ActionKind.ANSWER:
                    episode.answer = turn.action.answer
                return
            result = await self._result(episode, turn, draw)
            if result is None or not transcript.say(render_result(result)):
                episode.end = EndReason.TRUNCATED
                return
        episode.end = EndReason.MAX_TURNS

    async def _result(self, episode: Episode, turn: Turn, draw: Draw) -> str | None:
        """What comes back for a query: findings, or why it was not run; ``None`` as ``_read``."""
        query, earlier = turn.action.query, episode.turns[:-1]
        refusal = None
        if any(other.action.query == query for other in earlier):
            refusal = _ASKED_BEFORE
        elif sum(other.action.kind is ActionKind.SEARCH for other in earlier) >= (
            self._options.max_searches
        ):
            refusal = _LIMIT
        if refusal is not None:
            turn.action = Action(ActionKind.INVALID, query=query)
            return refusal
        [found] = await self._retriever.search([query], self._options.k)
        turn.hits = tuple(found)
        return await self._read(episode, turn, draw) if found else NOTHING

    async def _read(self, episode: Episode, turn: Turn, draw: Draw) -> str | None:
        """Reason-in-Documents: what helps in the passages; ``None`` where none fits the context."""
        options = self._options
        reasoning = shorten_reasoning(episode)

        def prompt(hits: Sequence[Hit]) -> str:
            return reason_in_documents_prompt(reasoning, turn.action.query, hits, options.style)

        def render(text: str) -> list[int]:
            return self._model.render_chat([Message("user", text)])

        room = self._model.max_length - options.max_reading_tokens
        shown = fit_hits(turn.hits, room, prompt, lambda text: len(render(text)))
        request = render(prompt(shown))
        if not shown or len(request) > room:
            return None
        seed = derive_seed(draw.seed, "reading", len(episode.turns))
        sampling = Sampling(options.max_reading_tokens, draw.temperature, seed=seed)
        completion = await self._model.complete(request, sampling)
        return strip_reasoning(completion.text).rpartition(_FINAL)[2].strip(" \n:") or NOTHING


def shorten_reasoning(episode: Episode) -> str:
    """The reasoning so far as numbered steps: the first, the last four, and those with a search.

    Steps are the paragraphs of what the model said and was told; runs of others become an ellipsis.
    """
    steps = [
        (segment.origin == "environment", step)
        for segment in episode.segments
        if segment.origin != "prompt"
        for step in segment.text.split("\n\n")
        if step.strip()
    ]
    lines: list[str] = []
    for number, (told, step) in enumerate(steps, start=1):
        asks = "<|begin_search_query|>" in step
        if number == 1 or number > len(steps) - _LAST_STEPS or told or asks:
            lines.append(f"Step {number}: {step.strip()}")
        elif lines[-1] != "...":
            lines.append("...")
    return "\n".join(lines)


def render_result(result: str) -> str:
    """What comes back for a query, as the model reads it."""
    return f"\n\n<|begin_search_result|>{neutralise(result)}<|end_search_result|>\n\n"
