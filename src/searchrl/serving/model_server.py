"""Any local language model over OpenAI's API: chats, completions by text or token ids, health.

Requests that come while the model computes are decoded together next. A reply is the one the model
would give in process: same rendering, same seeds. Limits hold before anything is computed: the
length of a request, the number of requests at a time, the model's context. A client that leaves
takes its request with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from searchrl.errors import InfrastructureError, InputError
from searchrl.models.protocol import LanguageModel, Sampling
from searchrl.serving.application import Application
from searchrl.serving.gate import Route
from searchrl.serving.http import RefusedError, Reply, Request, come_again
from searchrl.serving.openai_api import (
    DEFAULT_COMPLETION_TOKENS,
    Answered,
    ChatRequest,
    CompletionRequest,
    chat_response,
    completion_response,
    parse_request,
)
from searchrl.serving.settings import LOOPBACK_NAMES
from searchrl.serving.worker import Worker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_BODY_BYTES = 4 << 20
MAX_REQUESTS = 256
"""Requests that are answered or wait at a time; more are told to come again."""
_BODY_SECONDS = 30.0


class ModelServer(Application):
    """An ASGI application around one model.

    Args:
        model: the model; it is used in a thread of its own, and by nobody else meanwhile.
        tokenizer: the model's own.
        name: what clients have to call the model.
        hosts: names that a Host header may hold; empty for any.
        key: the API key; ``None`` answers everybody.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        hosts: Sequence[str] = LOOPBACK_NAMES,
        key: str | None = None,
    ) -> None:
        super().__init__(self._routes(), hosts, key)
        self._model = model
        self._tokenizer = tokenizer
        self._vocabulary = len(tokenizer)
        self._name = name
        self._created = int(time.time())
        self._worker = Worker()
        self._running = 0

    def _routes(self) -> Sequence[Route]:
        return (
            Route("GET", "/health", self._live, "Whether the process runs.", open=True),
            Route("GET", "/health/live", self._live, "Whether the process runs.", open=True),
            Route("GET", "/health/ready", self._ready, "Whether the model runs.", open=True),
            Route("GET", "/v1/models", self._models, "What is served."),
            Route("POST", "/v1/chat/completions", self._chat, "Reply to a chat."),
            Route("POST", "/v1/completions", self._complete, "Continue texts or token ids."),
        )

    def start(self) -> None:
        """Start the model's thread."""
        self._worker.start()

    async def stop(self) -> None:
        """End the model's thread after what it computes now."""
        await asyncio.to_thread(self._worker.stop)

    def refusal(self, error: RefusedError) -> Reply:
        """An error in the form of OpenAI's API."""
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        told = {"message": error.detail, "type": kind, "param": None, "code": error.status}
        return Reply.of({"error": told}, error.status, error.headers)

    async def _live(self, _: Request) -> Reply:
        return Reply.of({"status": "live"})

    async def _ready(self, _: Request) -> Reply:
        if not self._worker.alive:
            raise RefusedError(503, "the model is not running")
        return Reply.of({"status": "ready", "model": self._name, "running": self._running})

    async def _models(self, _: Request) -> Reply:
        model = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "searchrl",
            "max_model_len": self._model.max_length,
        }
        return Reply.of({"object": "list", "data": [model]})

    async def _chat(self, asked: Request) -> Reply:
        request = parse_request(ChatRequest, await self._body(asked))
        self._check_name(request.model)
        sampling = request.sampling(request.limit or self._model.max_length)

        async def work() -> Answered:
            return await self._continue(self._model.render_chat(request.chat), sampling)

        answered = await asked.unless_gone(self._run(work()))
        return Reply.of(chat_response(request, self._name, answered))

    async def _complete(self, asked: Request) -> Reply:
        request = parse_request(CompletionRequest, await self._body(asked))
        self._check_name(request.model)
        sampling = request.sampling(request.max_tokens or DEFAULT_COMPLETION_TOKENS)

        async def work() -> list[Answered]:
            prompts = [self._token_ids(prompt) for prompt in request.prompts]
            return await asyncio.gather(*(self._continue(p, sampling) for p in prompts))

        answered = await asked.unless_gone(self._run(work()))
        return Reply.of(completion_response(request, self._name, answered))

    async def _body(self, asked: Request) -> bytes:
        return await asked.json_body(MAX_BODY_BYTES, _BODY_SECONDS)

    async def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Let the model's thread do its part, unless too much is waiting there already."""
        if self._running >= MAX_REQUESTS:
            work.close()
            raise come_again("too many requests at a time", 1)
        self._running += 1
        try:
            return await self._worker.run(work)
        except InputError as error:
            raise RefusedError(400, str(error)) from error
        except InfrastructureError as error:
            raise RefusedError(502, str(error)) from error
        finally:
            self._running -= 1

    def _token_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """A prompt as token ids; runs in the model's thread, as all that tokenises does."""
        if isinstance(prompt, str):
            return self._model.encode(prompt)
        if max(prompt) >= self._vocabulary:
            raise InputError(f"prompt: token ids are 0 to {self._vocabulary - 1}")
        return list(prompt)

    async def _continue(self, prompt: list[int], sampling: Sampling) -> Answered:
        completion = await self._model.complete(prompt, sampling)
        pieces = [str(self._tokenizer.decode([token])) for token in completion.token_ids]
        return Answered(prompt, completion, pieces)

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise RefusedError(404, f"model {name!r} is not served here; this is {self._name!r}")
