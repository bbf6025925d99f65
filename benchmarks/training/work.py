"""The work that every engine is given: who reads what, and says how much, token by token.

A function of the work's own numbers and a seed, so that every interpreter makes the same. What an
episode reads is fixed; what it says is sampled by the engine, as many tokens as the script asks
for, since the end token is none of the model's. So engines differ in how they work and not in how
much. Nothing that is retrieved is shared by the episodes of a group, which real searchers often do:
it would be computed once here and over again by the peers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Literal

from searchrl.errors import InputError
from searchrl.seeding import derive_seed

VOCABULARY = 2048
"""Of what is read; a model may know more tokens."""
PADDING = 0
_SPREAD = 0.2
"""How far a question or a passage may be from its usual length."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """One step's work; lengths are in tokens.

    Attributes:
        algorithm: what is learned with.
        questions: questions a step.
        group: episodes a question.
        instructions: what all prompts open with.
        question: the rest of a prompt, about.
        fewest_searches: of an episode.
        most_searches: of an episode.
        passages: what a search returns.
        passage: the length of one, about.
        query: an output that searches.
        answer: the last output.
    """

    algorithm: Literal["grpo", "ppo", "reinforce_plus_plus"]
    questions: int = 16
    group: int = 8
    instructions: int = 180
    question: int = 64
    fewest_searches: int = 1
    most_searches: int = 1
    passages: int = 1
    passage: int = 25
    query: int = 28
    answer: int = 16

    def __post_init__(self) -> None:
        small = [name for name, value in asdict(self).items() if value in (0, -1)]
        wrong = [name for name in small if name not in ("fewest_searches", "most_searches")]
        if wrong:
            raise InputError(f"work: {wrong[0]} has to be 1 or more")
        if not 0 <= self.fewest_searches <= self.most_searches:
            raise InputError("work: searches go from the fewest, 0 or more, to the most")

    @property
    def longest_prompt(self) -> int:
        """No prompt has more tokens."""
        return self.instructions + _most(self.question)

    @property
    def longest(self) -> int:
        """No episode has more tokens."""
        told = self.passages * _most(self.passage)
        return self.longest_prompt + self.most_searches * (self.query + told) + self.answer


WORKS = {
    "single": Work("grpo", fewest_searches=0, most_searches=0, answer=44),
    "short": Work("grpo"),
    "rag": Work("grpo", fewest_searches=2, most_searches=3, passages=3, passage=110),
    "ppo": Work("ppo", fewest_searches=2, most_searches=3, passages=3, passage=110),
}
"""``single`` has no search; ``short`` one with a short result; ``rag`` and ``ppo`` are RAG's."""


@dataclass(frozen=True, slots=True)
class Output:
    """How many tokens the model says, and what it is told then."""

    length: int
    told: Tokens = ()


@dataclass(frozen=True, slots=True)
class Script:
    """One episode, but for what is sampled."""

    question: int
    sample: int
    prompt: Tokens
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of some episodes."""

    samples: int
    prompt: int
    told: int
    said: int


def prompt_of(work: Work, seed: int, question: int) -> Tokens:
    """The prompt of a question, which is counted from 0 over all steps."""
    instructions = _tokens(random.Random(derive_seed(seed, "instructions")), work.instructions)
    draw = random.Random(derive_seed(seed, "question", question))
    return instructions + _tokens(draw, _about(draw, work.question))


def script_of(work: Work, seed: int, question: int, sample: int) -> Script:
    """One episode of a question."""
    draw = random.Random(derive_seed(seed, "episode", question, sample))
    searches = draw.randint(work.fewest_searches, work.most_searches)
    outputs = [Output(work.query, _told(draw, work)) for _ in range(searches)]
    prompt = prompt_of(work, seed, question)
    return Script(question, sample, prompt, (*outputs, Output(work.answer)))


def step_of(work: Work, seed: int, step: int) -> list[Script]:
    """All episodes of a step, those of one question together."""
    first = step * work.questions
    return [
        script_of(work, seed, question, sample)
        for question in range(first, first + work.questions)
        for sample in range(work.group)
    ]


def counts_of(scripts: Sequence[Script]) -> Counts:
    """What a step's episodes come to."""
    outputs = [output for script in scripts for output in script.outputs]
    return Counts(
        samples=len(scripts),
        prompt=sum(len(script.prompt) for script in scripts),
        told=sum(len(output.told) for output in outputs),
        said=sum(output.length for output in outputs),
    )


def digest_of(scripts: Sequence[Script]) -> str:
    """Tells one work from another."""
    return hashlib.sha256(repr(scripts).encode()).hexdigest()[:16]


def reward_of(said: Iterable[int]) -> float:
    """Share of even tokens among those that were sampled: something to learn, and free."""
    tokens = list(said)
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def _told(draw: random.Random, work: Work) -> Tokens:
    passages = (_tokens(draw, _about(draw, work.passage)) for _ in range(work.passages))
    return tuple(chain.from_iterable(passages))


def _tokens(draw: random.Random, count: int) -> Tokens:
    return tuple(draw.choices(range(PADDING + 1, VOCABULARY), k=count))


def _about(draw: random.Random, length: int) -> int:
    return draw.randint(max(1, round(length * (1 - _SPREAD))), _most(length))


def _most(length: int) -> int:
    return max(1, round(length * (1 + _SPREAD)))
