"""The typed record of one attempt at one question.

Text is rendered from an episode and never parsed back: actions, selections and answers are fields,
set once from the model's own output. ``concat(segment.token_ids)`` is exactly what the model saw
and produced, so the trainable mask is a property of the segments and needs no search for tags.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from searchrl.data.questions import Question
from searchrl.retrieval.protocol import Hit


class ActionKind(StrEnum):
    """What a model's text asks for."""

    SEARCH = "search"
    FINISH = "finish"
    ANSWER = "answer"
    INVALID = "invalid"


class EndReason(StrEnum):
    """Why an episode ended."""

    FINISHED = "finished"
    """The model said so."""
    MAX_TURNS = "max_turns"
    """Its searches were used up and its last word was not a finish."""
    TRUNCATED = "truncated"
    """The context budget was reached."""
    INFRASTRUCTURE = "infrastructure"
    """A retriever or model failed; ``Episode.error`` says how."""


@dataclass(frozen=True, slots=True)
class Action:
    """One parsed request of the model: ``query`` for a search, ``answer`` for an answer."""

    kind: ActionKind
    query: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens with one origin.

    Attributes:
        origin: ``prompt`` and ``environment`` tokens are read by the model, ``model`` tokens were
            sampled by it and are the only trainable ones.
        token_ids: the tokens.
        text: their text, for people.
        logprobs: one value a token where the model sampled them, else empty.
    """

    origin: Literal["prompt", "model", "environment"]
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()


@dataclass(slots=True)
class Turn:
    """One model output and what the environment returned.

    Attributes:
        action: what the model asked for.
        hits: what a search returned, in rank order; empty otherwise.
        selected: positions in ``hits`` that the model selected later, in its own order; ``None``
            when it never selected among them.
        well_formed: whether the output has the form its method asks for; ``None`` for methods
            that ask for none.
    """

    action: Action
    hits: tuple[Hit, ...] = ()
    selected: tuple[int, ...] | None = None
    well_formed: bool | None = None


@dataclass(frozen=True, slots=True)
class Reward:
    """The value of a finished episode.

    Attributes:
        value: the number learned from; ``None`` when infrastructure failed, which takes the
            episode out of the loss and out of its group's baseline.
        parts: what the value was made of, for metrics.
    """

    value: float | None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Episode:
    """One attempt at one question.

    Attributes:
        question: the question.
        method: the name of the agent that made it.
        segments: prompt, model and environment tokens in the order the model saw them.
        initial: the hits of the retrieval that precedes the first turn, as a turn of its own whose
            action is a search for the question; ``None`` for methods without one.
        turns: model outputs in order.
        context: the passages handed to the generator, in order.
        answer: the final answer; ``None`` until one exists.
        answers_itself: the answer is the method's own, and where there is none, it gave none; a
            generator is not asked.
        end: why the episode ended.
        reward: set by a reward function.
        error: one line when infrastructure failed.
        seconds: wall time the episode took.
    """

    question: Question
    method: str
    segments: list[Segment] = field(default_factory=list)
    initial: Turn | None = None
    turns: list[Turn] = field(default_factory=list)
    context: tuple[Hit, ...] = ()
    answer: str | None = None
    answers_itself: bool = False
    end: EndReason = EndReason.FINISHED
    reward: Reward | None = None
    error: str | None = None
    seconds: float = 0.0

    @property
    def token_ids(self) -> list[int]:
        """All tokens, in the order the model saw and produced them."""
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def trainable_mask(self) -> list[bool]:
        """True for each token the model sampled, aligned with ``token_ids``."""
        return [s.origin == "model" for s in self.segments for _ in s.token_ids]

    @property
    def logprobs(self) -> list[float]:
        """Sampling log-probability of each trainable token, in order."""
        return [value for s in self.segments if s.origin == "model" for value in s.logprobs]

    @property
    def searches(self) -> int:
        """Searches the model asked for; the initial retrieval is not one of them."""
        return sum(turn.action.kind is ActionKind.SEARCH for turn in self.turns)

    @property
    def gold_recall(self) -> float | None:
        """Share of the gold passages that are in the context; ``None`` when none are known."""
        gold = set(self.question.gold_ids)
        if not gold:
            return None
        return len(gold & {hit.passage.id for hit in self.context}) / len(gold)

    def retrievals(self) -> Iterator[Turn]:
        """The initial retrieval, then every turn whose search returned."""
        if self.initial is not None:
            yield self.initial
        yield from (turn for turn in self.turns if turn.action.kind is ActionKind.SEARCH)

    def fail(self, error: Exception) -> None:
        """Note, in one line, that a service failed, which takes the episode out of every score."""
        self.end = EndReason.INFRASTRUCTURE
        self.error = " ".join(str(error).split()) or type(error).__name__

    def gather(self) -> tuple[Hit, ...]:
        """Every passage that was retrieved, each once, in the order of first sight."""
        seen: dict[str, Hit] = {}
        for hit in (hit for turn in self.retrievals() for hit in turn.hits):
            seen.setdefault(hit.passage.id, hit)
        return tuple(seen.values())

    def to_row(self) -> dict[str, Any]:
        """A JSON object for ``episodes.jsonl`` and the report, without token arrays."""
        return {
            "id": self.question.id,
            "method": self.method,
            "question": self.question.to_row(),
            "segments": [
                {"origin": s.origin, "text": s.text, "tokens": len(s.token_ids)}
                for s in self.segments
            ],
            "initial": _turn_row(self.initial) if self.initial is not None else None,
            "turns": [_turn_row(turn) for turn in self.turns],
            "context": [_hit_row(hit) for hit in self.context],
            "answer": self.answer,
            "answers_itself": self.answers_itself,
            "end": self.end.value,
            "reward": None
            if self.reward is None
            else {"value": self.reward.value, "parts": self.reward.parts},
            "error": self.error,
            "seconds": round(self.seconds, 4),
        }


def _turn_row(turn: Turn) -> dict[str, Any]:
    return {
        "action": turn.action.kind.value,
        "query": turn.action.query,
        "answer": turn.action.answer,
        "hits": [_hit_row(hit) for hit in turn.hits],
        "selected": None if turn.selected is None else list(turn.selected),
        "well_formed": turn.well_formed,
    }


def _hit_row(hit: Hit) -> dict[str, Any]:
    passage = hit.passage
    return {"id": passage.id, "title": passage.title, "text": passage.text, "score": hit.score}
