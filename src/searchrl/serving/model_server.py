"""Any local language model over OpenAI's API: chats, completions by text or token ids, health.

Requests that come while the model computes are decoded together next. A reply is the one the model
would give in process: same rendering, same seeds. Limits hold before anything is computed: the
length of a request, the number of requests at a time, the model's context. A client that leaves
takes its request with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from searchrl.errors import InfrastructureError, InputError
from searchrl.models.protocol import LanguageModel, Sampling
from searchrl.serving.asgi import (
    DisconnectedError,
    Receive,
    RefusedError,
    Scope,
    Send,
    disconnected,
    read_body,
    send_json,
    send_refusal,
)
from searchrl.serving.openai_api import (
    DEFAULT_COMPLETION_TOKENS,
    Answered,
    ChatRequest,
    CompletionRequest,
    chat_response,
    completion_response,
    parse_request,
)
from searchrl.serving.worker import Worker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_BODY_BYTES = 4 << 20
MAX_REQUESTS = 256
"""Requests that are answered or wait at a time; more are told to come again."""
_BODY_SECONDS = 30.0
_Handler = Callable[[bytes], Awaitable[dict[str, Any]]]

_log = logging.getLogger(__name__)


class ModelServer:
    """An ASGI application around one model.

    Args:
        model: the model; it is used in a thread of its own, and by nobody else meanwhile.
        tokenizer: the model's own.
        name: what clients have to call the model.
    """

    def __init__(self, model: LanguageModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._vocabulary = len(tokenizer)
        self._name = name
        self._created = int(time.time())
        self._worker = Worker()
        self._running = 0
        self._routes: dict[str, tuple[str, _Handler]] = {
            "/health": ("GET", self._live),
            "/health/live": ("GET", self._live),
            "/health/ready": ("GET", self._ready),
            "/v1/models": ("GET", self._models),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._complete),
        }

    @property
    def paths(self) -> list[str]:
        """Every path that is answered."""
        return list(self._routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or go through the server's life."""
        if scope["type"] == "lifespan":
            await self._live_and_die(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _live_and_die(self, receive: Receive, send: Send) -> None:
        await receive()
        self._worker.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.to_thread(self._worker.stop)
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            handler = self._handler(scope["method"], scope["path"])
            body = await read_body(receive, MAX_BODY_BYTES, _BODY_SECONDS)
            result = await _unless_gone(handler(body), receive)
        except DisconnectedError:
            return
        except RefusedError as refused:
            await send_refusal(send, refused)
        except Exception:  # noqa: BLE001 - the request fails, not the server
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await send_refusal(send, RefusedError(500, "the model failed; see the server's log"))
        else:
            await send_json(send, 200, result)

    def _handler(self, method: str, path: str) -> _Handler:
        if path not in self._routes:
            raise RefusedError(404, f"no such path; there are {', '.join(self._routes)}")
        wanted, handler = self._routes[path]
        if method != wanted:
            raise RefusedError(405, f"{path} takes {wanted}", {"Allow": wanted})
        return handler

    async def _live(self, body: bytes) -> dict[str, Any]:
        return {"status": "live"}

    async def _ready(self, body: bytes) -> dict[str, Any]:
        if not self._worker.alive:
            raise RefusedError(503, "the model is not running")
        return {"status": "ready", "model": self._name, "running": self._running}

    async def _models(self, body: bytes) -> dict[str, Any]:
        model = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "searchrl",
            "max_model_len": self._model.max_length,
        }
        return {"object": "list", "data": [model]}

    async def _chat(self, body: bytes) -> dict[str, Any]:
        request = parse_request(ChatRequest, body)
        self._check_name(request.model)
        sampling = request.sampling(request.limit or self._model.max_length)

        async def work() -> Answered:
            return await self._continue(self._model.render_chat(request.chat), sampling)

        return chat_response(request, self._name, await self._run(work()))

    async def _complete(self, body: bytes) -> dict[str, Any]:
        request = parse_request(CompletionRequest, body)
        self._check_name(request.model)
        sampling = request.sampling(request.max_tokens or DEFAULT_COMPLETION_TOKENS)

        async def work() -> list[Answered]:
            prompts = [self._token_ids(prompt) for prompt in request.prompts]
            return await asyncio.gather(*(self._continue(p, sampling) for p in prompts))

        return completion_response(request, self._name, await self._run(work()))

    async def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Let the model's thread do its part, unless too much is waiting there already."""
        if self._running >= MAX_REQUESTS:
            work.close()
            raise RefusedError(503, "too many requests at a time", {"Retry-After": "1"})
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


async def _unless_gone(answer: Awaitable[dict[str, Any]], receive: Receive) -> dict[str, Any]:
    """The answer, or an end to it when the client leaves before it is there.

    Raises:
        DisconnectedError: the client left.
    """
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise DisconnectedError
        return answering.result()
    finally:
        leaving.cancel()
        answering.cancel()
