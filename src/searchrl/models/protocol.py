"""What is asked of a language model, wherever it runs.

Two protocols, the larger one holding the smaller. A generator or a judge needs a ``ChatModel``:
messages in, text out, which any server offers. A searcher needs a ``LanguageModel``: token ids in,
token ids out, so what a model produced is never tokenised again, and the sequence a trainer scores
is the sequence the model saw.
"""

from __future__ import annotations

from abc import abstractmethod
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


class ChatModel(Protocol):
    """A language model that replies to messages."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Longest prompt plus reply, in tokens."""
        ...

    @abstractmethod
    def count(self, text: str) -> int:
        """Tokens of plain text; an estimate on the high side where the tokenizer is not at hand."""
        ...

    @abstractmethod
    def count_chat(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat in the model's template, counted like ``count``."""
        ...

    @abstractmethod
    async def chat(self, messages: Sequence[Message], sampling: Sampling) -> str:
        """The reply to a chat; a stop string that ended it is no part of it.

        Raises:
            InfrastructureError: the model could not be reached or failed after its retries.
            InputError: the messages leave no room for a single new token.
        """
        ...


class LanguageModel(ChatModel, Protocol):
    """A chat model that completes token sequences; a subclass chats by completing."""

    @abstractmethod
    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat in the model's own template, up to where the assistant speaks.

        Control tokens that appear inside a message's content are tokenised as plain text.
        """
        ...

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; control tokens in it become text pieces, never control."""
        ...

    @abstractmethod
    async def complete(self, prompt_token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue a prompt.

        Raises:
            InfrastructureError: the model could not be reached or failed after its retries.
            InputError: the prompt leaves no room for a single new token.
        """
        ...

    def count(self, text: str) -> int:
        """Tokens of plain text."""
        return len(self.encode(text))

    def count_chat(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat in the model's template."""
        return len(self.render_chat(messages))

    async def chat(self, messages: Sequence[Message], sampling: Sampling) -> str:
        """The reply to a chat; a stop string that ended it is no part of it."""
        completion = await self.complete(self.render_chat(messages), sampling)
        return cut_at_stop(completion.text, sampling.stop)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    places = [place for string in stop if (place := text.find(string)) >= 0]
    return text[: min(places, default=len(text))]
