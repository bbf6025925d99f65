"""What an agent asks of a language model, wherever the model runs.

Token ids go in and token ids come out: an agent never re-tokenises what a model produced, so the
sequence a trainer scores is the sequence the model saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol


class StopReason(StrEnum):
    """Why a completion ended."""

    STOP_STRING = "stop_string"
    """One of ``Sampling.stop`` was completed; the tokens that complete it are kept."""
    END_OF_SEQUENCE = "end_of_sequence"
    """The model's own end token; it is kept as the last token."""
    LENGTH = "length"
    """``Sampling.max_tokens`` was reached, or the model's context is full."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next tokens are drawn.

    Attributes:
        max_tokens: upper bound on new tokens.
        temperature: 0 is greedy. Log-probabilities are of the distribution drawn from.
        stop: generation ends as soon as the decoded completion contains one of these strings.
        seed: fixes the draw of this one request, whatever it is batched with.
    """

    max_tokens: int
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model produced.

    Attributes:
        token_ids: new tokens, the stopping ones included.
        logprobs: natural log-probability of each token under the sampling distribution.
        text: ``token_ids`` decoded, control tokens left out.
        stop_reason: why it ended.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class LanguageModel(Protocol):
    """A chat model that completes token sequences."""

    @property
    def max_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        ...

    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat in the model's own template, up to where the assistant speaks.

        Control tokens that appear inside a message's content are tokenised as plain text.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; control tokens in it become text pieces, never control."""
        ...

    async def complete(self, prompt_token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue a prompt.

        Raises:
            InfrastructureError: the model could not be reached or failed after its retries.
            InputError: the prompt leaves no room for a single new token.
        """
        ...
