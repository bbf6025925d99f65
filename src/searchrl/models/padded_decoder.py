"""Decoding with a model's own attention and cache: any causal language model of transformers.

Equal prompts of a batch are prefilled once, on rows padded to the longest. Rows that finish leave
the batch, so a long answer does not keep short ones computing. A batch is decoded to its end before
the next begins, and nothing is kept for a later turn: models that can be packed are decoded faster
by ``packed_decoder``, which the tests hold against this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from searchrl.models.decoder import Decoder
from searchrl.models.drawing import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PaddedDecoder(Decoder):
    """Decodes batches of rows of similar length.

    Args:
        model: any causal language model of transformers.
        tokenizer: its tokenizer.
        max_length: longest prompt plus completion.
        tokens_per_batch: padded prompt tokens that are prefilled together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        tokens_per_batch: int = 65_536,
    ) -> None:
        super().__init__(model, tokenizer, max_length)
        self._tokens_per_batch = tokens_per_batch
        self._waiting: list[Row] = []

    @property
    def active(self) -> int:
        """Rows of the batches to come."""
        return len(self._waiting)

    def admit(self, rows: Sequence[Row]) -> int:
        """Take all rows in."""
        self._waiting += rows
        return len(rows)

    def advance(self) -> list[Row]:
        """Decode all rows that were admitted."""
        rows, self._waiting = self._waiting, []
        with self.inferring():
            for batch in self._batches(rows):
                self._decode(batch)
        return rows

    def drop(self, rows: Sequence[Row]) -> None:
        """Leave out rows that nobody waits for any more."""
        self._waiting = [row for row in self._waiting if row not in rows]

    def forget(self) -> None:
        """Drop the rows that wait."""
        self._waiting = []

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows of similar length together, each batch within the token budget."""
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: len(row.request.prompt)):
            if batch and len(row.request.prompt) * (len(batch) + 1) > self._tokens_per_batch:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _decode(self, rows: list[Row]) -> None:
        state = self._prefill(rows)
        while True:
            tokens = self.drawing.draw(rows, state.logits_BV)
            going = [index for index, row in enumerate(rows) if row.stop is None]
            if not going:
                return
            if len(going) < len(rows):
                rows = [rows[index] for index in going]
                tokens = [tokens[index] for index in going]
                state.select(going)
            state.step(self.model, tokens)

    def _prefill(self, rows: Sequence[Row]) -> _State:
        prompts = list(dict.fromkeys(row.request.prompt for row in rows))
        place = {prompt: index for index, prompt in enumerate(prompts)}
        state = _State.prefill(self.model, prompts)
        indices = [place[row.request.prompt] for row in rows]
        if indices != list(range(len(prompts))):
            state.select(indices)
        return state


@dataclass(slots=True)
class _State:
    """The key-value cache of a batch and the logits of its next tokens."""

    cache: Any
    attention_BT: torch.Tensor
    positions_B: torch.Tensor
    logits_BV: torch.Tensor

    @classmethod
    def prefill(cls, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> _State:
        """Run left-padded prompts through the model."""
        width = max(len(prompt) for prompt in prompts)
        tokens_BT = torch.zeros(len(prompts), width, dtype=torch.long)
        attention_BT = torch.zeros(len(prompts), width, dtype=torch.long)
        for index, prompt in enumerate(prompts):
            tokens_BT[index, width - len(prompt) :] = torch.tensor(prompt)
            attention_BT[index, width - len(prompt) :] = 1
        tokens_BT, attention_BT = tokens_BT.to(model.device), attention_BT.to(model.device)
        output = model(
            input_ids=tokens_BT,
            attention_mask=attention_BT,
            position_ids=(attention_BT.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        return cls(output.past_key_values, attention_BT, attention_BT.sum(1), output.logits[:, -1])

    def select(self, indices: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be kept more than once."""
        chosen = torch.tensor(indices, device=self.attention_BT.device)
        self.cache.batch_select_indices(chosen)
        self.attention_BT = self.attention_BT[chosen]
        self.positions_B = self.positions_B[chosen]
        self.logits_BV = self.logits_BV[chosen]

    def step(self, model: PreTrainedModel, tokens: Sequence[int]) -> None:
        """Feed one token a row."""
        device = self.attention_BT.device
        grown = self.attention_BT.new_ones(len(tokens), 1)
        self.attention_BT = torch.cat([self.attention_BT, grown], dim=1)
        output = model(
            input_ids=torch.tensor(tokens, device=device).unsqueeze(1),
            attention_mask=self.attention_BT,
            position_ids=self.positions_B.unsqueeze(1),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions_B = self.positions_B + 1
        self.logits_BV = output.logits[:, -1]
