"""s3: a searcher that collects passages for a frozen generator (arXiv 2505.14146).

The episode opens with a retrieval for the question itself. The model then writes, turn by turn, a
query, or that the search is complete, and may name the helpful passages of the latest results. The
whole episode is one assistant turn: results are spliced in between its outputs.

The context for the generator is, in this order: the selected passages of every retrieval that has
a selection, in turn order and within it in rank order; then, for retrievals without one, what
``selection`` says. A passage appears once.

Differs from the paper:
- ``max_turns`` is the number of searches. The original code's ``max_turns = 3`` runs four of them;
  write 4 for that, and 3 for the paper's own count.
- ``selection = "tagged"``: a search whose results were never selected from contributes nothing,
  while untouched initial results stand, so that stopping at once equals naive RAG.
  ``"untagged_passes"`` is the original: every untagged block passes all its passages.
- Where the searcher's budget cuts a passage, the generator is still handed all of its text.
- The paper's ablations are the switches ``selection = "all"`` (no selection: every passage found)
  and ``hand_over_initial = false`` (no initial search: none of its passages). As in the released
  code they change what the generator is handed, not the episode; but it is handed passages, where
  the original hands over the raw transcript, reasoning and queries included.
- At most ``max_selected`` passages count a selection; the original only asks for it in the prompt.
- Output stops on closing tags and keeps them, instead of being cut and re-tokenised afterwards.
- The reminder after an invalid output does not open a query tag in the model's place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from searchrl.agents.agent import Draw
from searchrl.agents.budget import fit_hits
from searchrl.agents.episode import Action, ActionKind, EndReason, Episode, Turn
from searchrl.agents.prompts import Style, s3_prompt
from searchrl.agents.protocol import STOP_S3, parse_s3, render_hits, render_observation
from searchrl.agents.transcript import Transcript
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError
from searchrl.models.protocol import LanguageModel
from searchrl.options import Options
from searchrl.retrieval.protocol import Hit, Retriever

Selection = Literal["tagged", "untagged_passes", "all"]

_REMINDER = (
    "\n\nThat was neither a query nor a finished search. Write a query as JSON between query tags, "
    "or say that the search is complete.\n\n"
)


class S3Options(Options):
    """s3: shape and budgets of an episode; the defaults are the paper's 8-3-3."""

    kind: Literal["s3"] = "s3"
    """Which method is trained."""
    initial_k: PositiveInt = 3
    """Passages of the retrieval that precedes the first turn."""
    k: PositiveInt = 8
    """Passages a search."""
    max_turns: NonNegativeInt = 3
    """Searches at most."""
    max_selected: PositiveInt = 3
    """Passages that count in one selection."""
    max_prompt_tokens: PositiveInt = 2000
    """Budget of the prompt; the initial passages are cut to fit it."""
    max_response_tokens: PositiveInt = 500
    """Budget of one model output."""
    max_observation_tokens: PositiveInt = 1400
    """Budget of one block of results; passages are cut to fit it."""
    selection: Selection = "tagged"
    """What a retrieval without a selection contributes; `all` is every passage of every retrieval,
    selected or not."""
    hand_over_initial: bool = True
    """Whether passages of the initial retrieval reach the generator."""
    style: Style = "full"
    """Prompt style."""
    boolean_queries: bool = False
    """Tell the model that the engine understands AND, OR and parentheses."""


class S3Agent:
    """Runs s3 episodes with one searcher and one retriever."""

    def __init__(
        self,
        searcher: LanguageModel,
        retriever: Retriever,
        options: S3Options,
        name: str = "s3",
    ) -> None:
        self._searcher = searcher
        self._retriever = retriever
        self._options = options
        self._name = name

    @property
    def name(self) -> str:
        """The method's name in tables and records."""
        return self._name

    async def run(self, question: Question, draw: Draw) -> Episode:
        """Attempt one question; see the module for the order of the final context."""
        started = time.perf_counter()
        episode = Episode(question, self._name)
        budget = self._options.max_response_tokens
        transcript = Transcript(self._searcher, episode, draw, budget)
        try:
            await self._open(episode, transcript)
            await self._search_loop(episode, transcript)
        except InfrastructureError as error:
            episode.fail(error)
        episode.context = assemble_context(
            list(episode.retrievals()), self._options.selection, self._options.hand_over_initial
        )
        episode.seconds = time.perf_counter() - started
        return episode

    async def _open(self, episode: Episode, transcript: Transcript) -> None:
        """Retrieve with the question and render the prompt."""
        question, options = episode.question, self._options

        def prompt(hits: Sequence[Hit]) -> str:
            return s3_prompt(
                question.text,
                render_hits(hits),
                options.style,
                options.max_selected,
                options.boolean_queries,
            )

        [found] = await self._retriever.search([question.query], options.initial_k)
        budget = min(options.max_prompt_tokens, transcript.room)
        shown = fit_hits(found, budget, prompt, lambda text: len(transcript.render(text)))
        hits = tuple(found[: len(shown)])
        episode.initial = Turn(Action(ActionKind.SEARCH, query=question.query), hits)
        transcript.open(prompt(shown))

    async def _search_loop(self, episode: Episode, transcript: Transcript) -> None:
        latest = episode.initial
        for turns_left in range(self._options.max_turns, -1, -1):
            text = await transcript.speak(STOP_S3)
            if text is None:
                episode.end = EndReason.TRUNCATED
                return
            output = parse_s3(text)
            if latest is not None and latest.selected is None and output.selection is not None:
                latest.selected = self._positions(output.selection, latest.hits)
            turn = Turn(output.action)
            episode.turns.append(turn)
            if output.action.kind is ActionKind.FINISH:
                episode.end = EndReason.FINISHED
                return
            if turns_left == 0:
                # The last output may select and finish; a query in it is not run.
                turn.action = Action(ActionKind.INVALID, query=output.action.query)
                episode.end = EndReason.MAX_TURNS
                return
            if not await self._observe(transcript, turn):
                episode.end = EndReason.TRUNCATED
                return
            latest = turn if output.action.kind is ActionKind.SEARCH else latest

    async def _observe(self, transcript: Transcript, turn: Turn) -> bool:
        """Answer the model's output; ``False`` when no further output would fit."""
        if turn.action.kind is not ActionKind.SEARCH:
            return transcript.say(_REMINDER)
        [found] = await self._retriever.search([turn.action.query], self._options.k)
        shown = transcript.show(found, self._options.max_observation_tokens, _observation)
        turn.hits = shown or ()
        return shown is not None

    def _positions(self, numbers: Sequence[int], hits: Sequence[Hit]) -> tuple[int, ...]:
        """Positions from 0 of the passages selected by their number; others are ignored."""
        valid = [number - 1 for number in numbers if 1 <= number <= len(hits)]
        return tuple(valid[: self._options.max_selected])


def assemble_context(
    retrievals: Sequence[Turn], selection: Selection, initial: bool = True
) -> tuple[Hit, ...]:
    """The passages for the generator, each once, in the order the module describes.

    Args:
        retrievals: the initial one, then those of the model's queries.
        selection: what a retrieval without a selection contributes.
        initial: whether the initial one contributes.
    """
    chosen: dict[str, Hit] = {}
    numbered = list(enumerate(retrievals))[0 if initial else 1 :]
    for _, turn in numbered:
        for position in sorted(turn.selected or ()) if selection != "all" else ():
            chosen.setdefault(turn.hits[position].passage.id, turn.hits[position])
    for number, turn in numbered:
        untouched = turn.selected is None and (number == 0 or selection == "untagged_passes")
        for hit in turn.hits if untouched or selection == "all" else ():
            chosen.setdefault(hit.passage.id, hit)
    return tuple(chosen.values())


def _observation(hits: Sequence[Hit]) -> str:
    return render_observation(render_hits(hits))
