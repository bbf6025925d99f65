"""Rows that are being decoded, whichever way a step of theirs is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from searchrl.models.cohort import Begun, Span
from searchrl.models.drawing import Row
from searchrl.models.prefix_cache import Layers
from searchrl.models.token_tree import Indices


class Running(ABC):
    """Rows, and the keys and values that they read."""

    @property
    @abstractmethod
    def live(self) -> list[Begun]:
        """Rows that have not ended."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether there are any."""

    @abstractmethod
    def fitting(self, rows: Sequence[Row]) -> int:
        """How many of the rows, from the first on, there is room for beside those that run.

        Returns:
            One at least where nothing runs.
        """

    @abstractmethod
    def begin(self, begun: Sequence[Begun]) -> list[tuple[Span, Indices, int]]:
        """Take in rows whose prompts have been read and whose first token has been drawn.

        Returns:
            What rows read together from then on: keys and values, the tokens up to their end, and
            how many of those stand before them.
        """

    @abstractmethod
    def step(self) -> list[Row]:
        """Feed every row its last token and draw the next one; returns the rows that end so."""

    @abstractmethod
    def leave(self) -> Iterator[tuple[Begun, Layers, Layers]]:
        """Rows that have ended since, with the keys and values that each has to itself."""

    @abstractmethod
    def clear(self) -> None:
        """Drop every row."""
