"""OpenAI's chat and completion requests, as far as the model server takes them, and its replies.

A field that would change the result and is not supported is refused, never ignored. Beyond OpenAI's
own fields, vLLM's ``return_token_ids`` and ``include_stop_str_in_output`` are taken, and
``stop_reason`` names the stop string that ended a reply. A prompt given as text is plain text:
control tokens in it are not read as such. Whoever needs them sends token ids.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
)

from searchrl.models.protocol import Completion, Message, Sampling, StopReason, cut_at_stop
from searchrl.serving.http import RefusedError

MAX_PROMPTS = 64
MAX_MESSAGES = 256
MAX_STOPS = 16
MAX_STOP_BYTES = 64
"""A stop string is looked for in the last 64 tokens, and a token holds a byte or more."""
DEFAULT_COMPLETION_TOKENS = 16

Stop = Annotated[str, StringConstraints(min_length=1)]
TokenIds = Annotated[list[NonNegativeInt], Field(min_length=1)]


class _Request(BaseModel):
    """What both kinds of requests say. Fields with one possible value are taken for that value."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    return_token_ids: bool | None = None
    include_stop_str_in_output: bool | None = None
    user: str | None = None
    stream: Literal[False] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, max_tokens: int) -> Sampling:
        """How to sample; a request without a seed draws one, and without a temperature takes 1.

        Raises:
            RefusedError: a stop string is too long.
        """
        if any(len(stop.encode()) > MAX_STOP_BYTES for stop in self.stops):
            raise RefusedError(400, f"stop: a stop string has at most {MAX_STOP_BYTES} bytes")
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            stop=self.stops,
            seed=secrets.randbits(63) if self.seed is None else self.seed % 2**63,
        )

    def text(self, completion: Completion) -> str:
        """The reply's text, with the stop string that ended it only where that is wanted."""
        if self.include_stop_str_in_output:
            return completion.text
        return cut_at_stop(completion.text, self.stops)

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """What a choice of either kind holds."""
        ended = completion.stop_reason
        named = next((stop for stop in self.stops if stop in completion.text), None)
        return {
            "index": index,
            "finish_reason": "length" if ended is StopReason.LENGTH else "stop",
            "stop_reason": named if ended is StopReason.STOP_STRING else None,
            "token_ids": list(completion.token_ids) if self.return_token_ids else None,
        }


class _ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(_Request):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[_ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None

    @property
    def chat(self) -> list[Message]:
        """The messages."""
        return [Message(message.role, message.content) for message in self.messages]

    @property
    def limit(self) -> int | None:
        """The most tokens of a reply; ``None`` for as many as the context has room for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Request):
    """The body of ``POST /v1/completions``."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts: list[str | list[int]] = []
        token_ids: list[int] = []
        for item in self.prompt:
            if isinstance(item, int):
                token_ids.append(item)
            else:
                texts.append(item)
        return [token_ids] if token_ids else texts


Request = TypeVar("Request", bound=_Request)


def parse_request(kind: type[Request], body: bytes) -> Request:
    """Read a request.

    Raises:
        RefusedError: it is not JSON, or a field is wrong or not supported.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        message = "is not supported" if first["type"] == "extra_forbidden" else first["msg"]
        raise RefusedError(400, f"{name}: {message}" if name else message) from error


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and its completion, with the text of each new token."""

    prompt: Sequence[int]
    completion: Completion
    pieces: Sequence[str]


def chat_response(request: ChatRequest, name: str, answered: Answered) -> dict[str, Any]:
    """The answer to a chat request."""
    completion = answered.completion
    logprobs = None
    if request.logprobs:
        rows = zip(answered.pieces, completion.logprobs, strict=True)
        content = [
            {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}
            for piece, value in rows
        ]
        logprobs = {"content": content}
    choice = request.choice(0, completion) | {
        "message": {"role": "assistant", "content": request.text(completion)},
        "logprobs": logprobs,
    }
    return _response("chat.completion", "chatcmpl", name, [choice], [answered]) | {
        "prompt_token_ids": list(answered.prompt) if request.return_token_ids else None
    }


def completion_response(
    request: CompletionRequest, name: str, answered: Sequence[Answered]
) -> dict[str, Any]:
    """The answer to a completion request: one choice a prompt, in their order."""
    choices = []
    for index, item in enumerate(answered):
        logprobs = None
        if request.logprobs is not None:
            logprobs = {
                "tokens": list(item.pieces),
                "token_logprobs": list(item.completion.logprobs),
                "top_logprobs": None,
                "text_offset": _offsets(item.pieces),
            }
        choices.append(
            request.choice(index, item.completion)
            | {
                "text": request.text(item.completion),
                "logprobs": logprobs,
                "prompt_token_ids": list(item.prompt) if request.return_token_ids else None,
            }
        )
    return _response("text_completion", "cmpl", name, choices, answered)


def _response(
    kind: str, prefix: str, name: str, choices: list[dict[str, Any]], answered: Sequence[Answered]
) -> dict[str, Any]:
    prompt = sum(len(item.prompt) for item in answered)
    new = sum(len(item.completion.token_ids) for item in answered)
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": name,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
        },
    }


def _offsets(pieces: Sequence[str]) -> list[int]:
    """Where each piece begins in their joined text."""
    offsets, place = [], 0
    for piece in pieces:
        offsets.append(place)
        place += len(piece)
    return offsets
