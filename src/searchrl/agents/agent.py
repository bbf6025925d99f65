"""What every method offers: one question in, one episode out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from searchrl.agents.episode import Episode
from searchrl.data.questions import Question


@dataclass(frozen=True, slots=True)
class Draw:
    """How a method samples from its model: greedy by default."""

    temperature: float = 0.0
    seed: int = 0


class Agent(Protocol):
    """A method that attempts questions.

    A failed retriever or model ends the episode with ``Episode.error`` set; it never raises and
    never turns into text that a model reads.
    """

    @property
    def name(self) -> str:
        """The method's name in tables and records."""
        ...

    async def run(self, question: Question, draw: Draw) -> Episode:
        """Attempt one question."""
        ...
