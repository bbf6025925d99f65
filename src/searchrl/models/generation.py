"""Batched decoding over a transformers model, exact about what was sampled.

Equal prompts of a batch are prefilled once. Rows that finish leave the batch, so a long answer does
not keep short ones computing. Every row draws from its own seed, one uniform number a token, so a
draw does not depend on what it is batched with. The log-probability kept for a token is that of
the distribution it was drawn from; for greedy decoding, the model's own at temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from searchrl.errors import InputError
from searchrl.models.protocol import Completion, Sampling, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STOP_WINDOW = 64
"""Tokens decoded to look for a stop string; no stop string may be longer."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it."""

    prompt: tuple[int, ...]
    sampling: Sampling


@dataclass(slots=True)
class _Row:
    """One request while it is decoded."""

    request: Request
    limit: int
    uniforms: list[float]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: StopReason | None = None


class Decoder:
    """Completes batches of requests with one model.

    Args:
        model: any causal language model of transformers.
        tokenizer: its tokenizer. A completion ends with its end-of-sequence token, or with another
            that the model's generation settings name.
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
        self._model = model
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._tokens_per_batch = tokens_per_batch
        self._pieces: dict[int, str] = {}
        self._ends = _end_tokens(model, tokenizer)

    def check(self, request: Request) -> None:
        """See that a request can be decoded at all.

        Raises:
            InputError: it cannot; the line says why.
        """
        length, sampling = len(request.prompt), request.sampling
        if not length:
            raise InputError("a prompt of 0 tokens cannot be continued; give it one token or more")
        if length >= self._max_length:
            raise InputError(
                f"a prompt of {length} tokens leaves no room in a context of "
                f"{self._max_length}; lower the retrieval or observation budget"
            )
        if sampling.max_tokens < 1:
            raise InputError(f"max_tokens {sampling.max_tokens}: ask for 1 token or more")
        if not 0 <= sampling.temperature < math.inf:
            raise InputError(f"temperature {sampling.temperature}: it must be 0 or more")
        if not all(sampling.stop):
            raise InputError("stop: an empty stop string would end every completion")

    @torch.inference_mode()
    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request, in the order given.

        Raises:
            InputError: a request cannot be decoded, see ``check``.
        """
        for request in requests:
            self.check(request)
        rows = [self._row(request) for request in requests]
        training = self._model.training
        self._model.eval()
        try:
            for batch in self._batches(rows):
                self._decode(batch)
        finally:
            self._model.train(training)
        return [self._completion(row) for row in rows]

    def _row(self, request: Request) -> _Row:
        room = self._max_length - len(request.prompt)
        limit = min(request.sampling.max_tokens, room)
        uniforms: list[float] = []
        if request.sampling.temperature > 0:
            generator = torch.Generator().manual_seed(request.sampling.seed)
            uniforms = torch.rand(limit, generator=generator, dtype=torch.float64).tolist()
        return _Row(request, limit, uniforms)

    def _batches(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Rows of similar length together, each batch within the token budget."""
        batch: list[_Row] = []
        for row in sorted(rows, key=lambda row: len(row.request.prompt)):
            if batch and len(row.request.prompt) * (len(batch) + 1) > self._tokens_per_batch:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _decode(self, rows: list[_Row]) -> None:
        state = self._prefill(rows)
        while True:
            tokens = self._draw(rows, state.logits_BV)
            going = [index for index, row in enumerate(rows) if row.stop is None]
            if not going:
                return
            if len(going) < len(rows):
                rows = [rows[index] for index in going]
                tokens = [tokens[index] for index in going]
                state.select(going)
            state.step(self._model, tokens)

    def _prefill(self, rows: Sequence[_Row]) -> _State:
        prompts = list(dict.fromkeys(row.request.prompt for row in rows))
        place = {prompt: index for index, prompt in enumerate(prompts)}
        state = _State.prefill(self._model, prompts)
        indices = [place[row.request.prompt] for row in rows]
        if indices != list(range(len(prompts))):
            state.select(indices)
        return state

    def _draw(self, rows: Sequence[_Row], logits_BV: torch.Tensor) -> list[int]:
        """Choose the next token of every row, and note which rows end with it."""
        temperatures = [row.request.sampling.temperature or 1.0 for row in rows]
        scale_B1 = torch.tensor(temperatures, device=logits_BV.device).unsqueeze(1)
        logprobs_BV = torch.log_softmax(logits_BV.float() / scale_B1, dim=-1)
        chosen_B = logprobs_BV.argmax(dim=-1)
        drawn = [index for index, row in enumerate(rows) if row.uniforms]
        if drawn:
            points = [rows[index].uniforms[len(rows[index].token_ids)] for index in drawn]
            chosen_B[drawn] = _inverse_cdf(logprobs_BV[drawn], points)
        values_B = logprobs_BV.gather(1, chosen_B.unsqueeze(1)).squeeze(1)
        tokens: list[int] = chosen_B.tolist()
        for row, token, logprob in zip(rows, tokens, values_B.tolist(), strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.stop = self._stop_reason(row)
        return tokens

    def _stop_reason(self, row: _Row) -> StopReason | None:
        last = row.token_ids[-1]
        if last in self._ends:
            return StopReason.END_OF_SEQUENCE
        if self._meets_stop_string(row, last):
            return StopReason.STOP_STRING
        return StopReason.LENGTH if len(row.token_ids) >= row.limit else None

    def _meets_stop_string(self, row: _Row, last: int) -> bool:
        stops = row.request.sampling.stop
        if last not in self._pieces:
            self._pieces[last] = self._text([last])
        # Only a token that holds a stop string's last character, or a byte of it, can complete it.
        piece = self._pieces[last]
        if not any(stop[-1] in piece or "\ufffd" in piece for stop in stops):
            return False
        tail = self._text(row.token_ids[-_STOP_WINDOW:])
        return any(stop in tail for stop in stops)

    def _completion(self, row: _Row) -> Completion:
        assert row.stop is not None
        text = self._text(row.token_ids)
        return Completion(tuple(row.token_ids), tuple(row.logprobs), text, row.stop)

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return frozenset(token for token in ends if isinstance(token, int))


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


def _inverse_cdf(logprobs_BV: torch.Tensor, points: Sequence[float]) -> torch.Tensor:
    """The token at which each row's cumulative probability passes its point in [0, 1)."""
    cumulative_BV = logprobs_BV.double().exp().cumsum(dim=-1)
    point_B1 = torch.tensor(points, dtype=torch.float64, device=logprobs_BV.device).unsqueeze(1)
    # Scaling by the total keeps a rounding shortfall from leaving the range.
    chosen_B1 = torch.searchsorted(cumulative_BV, point_B1 * cumulative_BV[:, -1:], right=True)
    return chosen_B1.squeeze(1).clamp(max=logprobs_BV.shape[1] - 1)
