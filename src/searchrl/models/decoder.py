"""Many completions at a time, whichever way they are computed.

A decoder takes rows in while others are being decoded and hands each back as soon as it ends, so a
finished turn is searched for, and the episode goes on, while others are still speaking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from searchrl.models.drawing import Drawing, Request, Row
from searchrl.models.protocol import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Decoder(ABC):
    """Decodes rows with one model.

    Args:
        model: a causal language model of transformers. Its weights may change while no row is
            being decoded.
        tokenizer: its tokenizer.
        max_length: longest prompt plus completion.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        self.model = model
        self.max_length = max_length
        self.drawing = Drawing(model, tokenizer, max_length)

    @property
    @abstractmethod
    def active(self) -> int:
        """Rows that have been admitted and have not ended."""

    @abstractmethod
    def admit(self, rows: Sequence[Row]) -> int:
        """Begin with as many of the rows, from the first on, as there is room for.

        Returns:
            Their number; one at least where nothing is being decoded.
        """

    @abstractmethod
    def advance(self) -> list[Row]:
        """Decode until a row ends; returns those that have."""

    @abstractmethod
    def drop(self, rows: Sequence[Row]) -> None:
        """Stop decoding rows that nobody waits for any more."""

    @abstractmethod
    def forget(self) -> None:
        """Drop every row, after a failure."""

    def rest(self) -> None:
        """No rows will come for a while: give up memory that others can use by then."""
        return

    def measures(self) -> dict[str, float]:
        """Metrics of its latest work, by name."""
        return {}

    @contextmanager
    def inferring(self) -> Iterator[None]:
        """No gradients and no dropout for the while."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(training)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request, in the order given.

        Raises:
            InputError: a request cannot be decoded, see ``Drawing.check``.
        """
        for request in requests:
            self.drawing.check(request)
        rows = [self.drawing.row(request) for request in requests]
        begun = 0
        while begun < len(rows) or self.active:
            begun += self.admit(rows[begun:])
            self.advance()
        return [self.drawing.completion(row) for row in rows]
