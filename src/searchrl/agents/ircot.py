"""IRCoT: retrieval interleaved with a chain of thought (ACL 2023, arXiv 2212.10509).

The question is the first query. Then the model writes one sentence of reasoning at a time; each
sentence is the next query, and its passages join those collected so far, which the model reads for
its next sentence. It ends when a sentence gives the answer, or a budget does. The context is all
that was collected: a separate reader, the frozen generator, answers from it.

The defaults match Search-R1's budget, 4 retrievals of 3 passages. ``PUBLISHED`` is the paper's
setting: 6 passages a retrieval, 15 at most, 10 sentences, with its rules for queries and passages.

Differs from the paper:
- An instruction takes the place of its 20 annotated demonstrations.
- A sentence ends at its punctuation before white space; the original asks spaCy.
- Decoding is as the caller asks, greedy in evaluation.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field, PositiveInt

from searchrl.agents.agent import Draw
from searchrl.agents.budget import fit_hits
from searchrl.agents.episode import Action, ActionKind, EndReason, Episode, Turn
from searchrl.agents.prompts import Style, ircot_prompt
from searchrl.agents.transcript import ask
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError
from searchrl.models.protocol import LanguageModel, Message
from searchrl.options import Options
from searchrl.retrieval.protocol import Hit, Retriever

# Initials and titles of persons end no sentence.
_SENTENCE = re.compile(
    r"(.+?(?<!\b[A-Z])(?<!\b[DMS]r)(?<!\bJr)(?<!\bSt)(?<!\bMrs)[.!?])(?:\s|$)", re.DOTALL
)
_ANSWERED = re.compile(r"\banswer is\b", re.IGNORECASE)
_DEDUCTION = re.compile(r"(?:thus|so|therefore|hence|that is)\b|.*\d\s*[-+*/=]\s*\d", re.I | re.S)
_QUESTION_WORDS = re.compile(r"\b(?:who|what|when|where|why|which|how)\b", re.IGNORECASE)


class IrcotOptions(Options):
    """IRCoT, a prompting baseline; the defaults match Search-R1's budget."""

    k: PositiveInt = 3
    """Passages a retrieval."""
    max_retrievals: PositiveInt = 4
    """Retrievals at most, the one with the question included."""
    max_sentences: PositiveInt = 10
    """Sentences of reasoning at most."""
    max_passages: PositiveInt = 15
    """Passages collected at most."""
    max_response_tokens: PositiveInt = 200
    """Budget of one sentence."""
    max_passage_words: PositiveInt | None = None
    """Longer passages are not collected; any length when left out."""
    shown_words: PositiveInt | None = None
    """Words of a passage that the model reads; all when left out."""
    likeness: float = Field(1.0, gt=0, le=1)
    """A passage whose title and text are this like another's is not collected."""
    drop_question_words: bool = False
    """Leave who, what, when, where, why, which and how out of queries."""
    style: Style = "full"
    """Prompt style."""


PUBLISHED = IrcotOptions(
    k=6,
    max_retrievals=11,
    max_passage_words=600,
    shown_words=350,
    likeness=0.9,
    drop_question_words=True,
)
"""The setting of the paper's HotpotQA runs; a retrieval a sentence, and the first."""


class IrcotAgent:
    """Collects passages with one prompted model and one retriever."""

    def __init__(
        self,
        model: LanguageModel,
        retriever: Retriever,
        options: IrcotOptions,
        name: str = "ircot",
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
            await self._run(episode, draw)
        except InfrastructureError as error:
            episode.fail(error)
        episode.seconds = time.perf_counter() - started
        return episode

    async def _run(self, episode: Episode, draw: Draw) -> None:
        options, sentences = self._options, list[str]()
        episode.initial = await self._retrieve(episode, episode.question.query)
        episode.end = EndReason.MAX_TURNS
        while episode.searches + 1 < options.max_retrievals and (
            len(sentences) < options.max_sentences
        ):
            sentence = await self._reason(episode, draw, sentences)
            if sentence is None:
                episode.end = EndReason.TRUNCATED
                return
            if not sentence or _ANSWERED.search(sentence):
                episode.turns.append(Turn(Action(ActionKind.FINISH)))
                episode.end = EndReason.FINISHED
                return
            sentences.append(sentence)
            query = next_query(episode.question.query, sentences)
            episode.turns.append(await self._retrieve(episode, query))

    async def _retrieve(self, episode: Episode, query: str) -> Turn:
        if self._options.drop_question_words:
            query = " ".join(_QUESTION_WORDS.sub(" ", query).split()) or query
        [found] = await self._retriever.search([query], self._options.k)
        for hit in found:
            if len(episode.context) < self._options.max_passages and self._is_new(hit, episode):
                episode.context += (hit,)
        return Turn(Action(ActionKind.SEARCH, query=query), tuple(found))

    def _is_new(self, hit: Hit, episode: Episode) -> bool:
        limit = self._options.max_passage_words
        if limit is not None and len(hit.passage.text.split()) > limit:
            return False
        return not any(self._alike(hit, other) for other in episode.context)

    def _alike(self, one: Hit, other: Hit) -> bool:
        pairs = ((one.passage.title, other.passage.title), (one.passage.text, other.passage.text))
        return one.passage.id == other.passage.id or all(
            _likeness_reaches(self._options.likeness, *pair) for pair in pairs
        )

    async def _reason(self, episode: Episode, draw: Draw, sentences: Sequence[str]) -> str | None:
        """The next sentence, empty where the model has none, ``None`` where it has no room."""
        question, options = episode.question.text, self._options
        begun = "".join(f"{sentence} " for sentence in sentences)

        def prompt(hits: Sequence[Hit]) -> str:
            return ircot_prompt(question, hits, options.style)

        def count(text: str) -> int:
            return len(self._model.render_chat([Message("user", text)]))

        room = self._model.max_length - options.max_response_tokens
        room -= len(self._model.encode(begun))
        hits = fit_hits([self._shown(hit) for hit in episode.context], room, prompt, count)
        text = await ask(
            self._model,
            episode,
            [Message("user", prompt(hits))],
            draw,
            options.max_response_tokens,
            begun,
        )
        return None if text is None else first_sentence(text)

    def _shown(self, hit: Hit) -> Hit:
        words = hit.passage.text.split()
        if self._options.shown_words is None or len(words) <= self._options.shown_words:
            return hit
        text = " ".join(words[: self._options.shown_words])
        return replace(hit, passage=replace(hit.passage, text=text))


def _likeness_reaches(bound: float, one: str, other: str) -> bool:
    """Whether two texts are that alike; the cheap upper bounds of their likeness first."""
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    return all(
        ratio() >= bound for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    )


def first_sentence(text: str) -> str:
    """The first sentence of a text, or all of it where none ends."""
    text = text.strip()
    match = _SENTENCE.match(text)
    return match[1] if match else text


def next_query(question: str, sentences: Sequence[str]) -> str:
    """The last sentence that states a fact; those that only conclude or compute are passed over."""
    facts = (sentence for sentence in reversed(sentences) if not _DEDUCTION.match(sentence))
    return next(facts, question)
