"""How next tokens are drawn and when a completion ends, whichever decoder computes the logits.

Every row draws from its own seed, one uniform number a token, so a draw does not depend on what it
is batched with. The log-probability kept for a token is that of the distribution it was drawn from;
for greedy decoding, the model's own at temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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


@dataclass(slots=True, eq=False)
class Row:
    """One request while it is decoded."""

    request: Request
    limit: int
    uniforms: list[float]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: StopReason | None = None

    @property
    def temperature(self) -> float:
        """Of its distribution; a greedy row's is the model's own."""
        return self.request.sampling.temperature or 1.0

    @property
    def longest(self) -> int:
        """Tokens of its prompt and of all that it may say."""
        return len(self.request.prompt) + self.limit


class Drawing:
    """Draws tokens for rows, notices their ends, and turns them into completions.

    Args:
        model: whose tokens they are. A completion ends with an end-of-sequence token that its
            generation settings or its tokenizer name.
        tokenizer: its tokenizer.
        max_length: longest prompt plus completion.

    Attributes:
        ends: the tokens that end a sequence.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._pieces: dict[int, str] = {}
        self.ends = _end_tokens(model, tokenizer)

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

    def row(self, request: Request) -> Row:
        """A request as it begins."""
        room = self._max_length - len(request.prompt)
        limit = min(request.sampling.max_tokens, room)
        uniforms: list[float] = []
        if request.sampling.temperature > 0:
            generator = torch.Generator().manual_seed(request.sampling.seed)
            uniforms = torch.rand(limit, generator=generator, dtype=torch.float64).tolist()
        return Row(request, limit, uniforms)

    def draw(self, rows: Sequence[Row], logits_BV: torch.Tensor) -> list[int]:
        """Choose the next token of every row, and note which rows end with it."""
        temperatures = [row.temperature for row in rows]
        logprobs_BV = distribution(logits_BV, torch.tensor(temperatures, device=logits_BV.device))
        chosen_B = logprobs_BV.argmax(dim=-1)
        drawn = [index for index, row in enumerate(rows) if row.uniforms]
        if drawn:
            points = [rows[index].uniforms[len(rows[index].token_ids)] for index in drawn]
            points_B = torch.tensor(points, dtype=torch.float64, device=logits_BV.device)
            chosen_B[drawn] = inverse_cdf(logprobs_BV[drawn], points_B)
        values_B = logprobs_BV.gather(1, chosen_B.unsqueeze(1)).squeeze(1)
        tokens: list[int] = chosen_B.tolist()
        for row, token, logprob in zip(rows, tokens, values_B.tolist(), strict=True):
            self.note(row, token, logprob)
        return tokens

    def note(self, row: Row, token: int, logprob: float) -> None:
        """Add a token that was drawn to its row, and note whether the row ends with it."""
        row.token_ids.append(token)
        row.logprobs.append(logprob)
        row.stop = self._stop_reason(row)

    def completion(self, row: Row) -> Completion:
        """What a row that has ended produced."""
        assert row.stop is not None
        text = self._text(row.token_ids)
        return Completion(tuple(row.token_ids), tuple(row.logprobs), text, row.stop)

    def _stop_reason(self, row: Row) -> StopReason | None:
        last = row.token_ids[-1]
        if last in self.ends:
            return StopReason.END_OF_SEQUENCE
        if self._meets_stop_string(row, last):
            return StopReason.STOP_STRING
        return StopReason.LENGTH if len(row.token_ids) >= row.limit else None

    def _meets_stop_string(self, row: Row, last: int) -> bool:
        stops = row.request.sampling.stop
        if last not in self._pieces:
            self._pieces[last] = self._text([last])
        # Only a token that holds a stop string's last character, or a byte of it, can complete it.
        piece = self._pieces[last]
        if not any(stop[-1] in piece or "\ufffd" in piece for stop in stops):
            return False
        tail = self._text(row.token_ids[-_STOP_WINDOW:])
        return any(stop in tail for stop in stops)

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return frozenset(token for token in ends if isinstance(token, int))


def distribution(logits_BV: torch.Tensor, temperatures_B: torch.Tensor) -> torch.Tensor:
    """Log-probabilities at each row's temperature."""
    return torch.log_softmax(logits_BV.float() / temperatures_B.unsqueeze(1), dim=-1)


def inverse_cdf(logprobs_BV: torch.Tensor, points_B: torch.Tensor) -> torch.Tensor:
    """The token at which each row's cumulative probability passes its point in [0, 1).

    Args:
        logprobs_BV: in single precision; they are added up in double.
        points_B: in double.
    """
    cumulative_BV = logprobs_BV.double().exp_().cumsum(dim=-1)
    # Scaling by the total keeps a rounding shortfall from leaving the range.
    wanted_B1 = points_B.unsqueeze(1) * cumulative_BV[:, -1:]
    chosen_B1 = torch.searchsorted(cumulative_BV, wanted_B1, right=True)
    return chosen_B1.squeeze(1).clamp(max=logprobs_BV.shape[1] - 1)
