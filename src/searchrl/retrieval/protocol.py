"""What every retriever promises: distinct passages, best first, none invented.

A result list holds ``min(k, corpus size)`` hits when that many passages exist, ordered by score
descending and then by id, never padded and never repeated, whatever engine stands behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from searchrl.data.passages import Passage


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with the score the retriever gave it for one query."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Answers queries with passages."""

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return one list of hits a query, in the order of the queries.

        Raises:
            InfrastructureError: the service behind this retriever failed after its retries.
        """
        ...
