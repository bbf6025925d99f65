"""Language models behind OpenAI-compatible servers: vLLM, SGLang, Ollama, llama.cpp, hosted ones.

``HttpChatModel`` asks for chats, which every such server offers, and serves generators and judges.
``HttpLanguageModel`` sends token ids and reads token ids back, for searchers that are evaluated. It
needs the model's tokenizer here and a server that returns token ids (vLLM from 0.10.2 on,
``searchrl serve-model``); its log-probabilities are the server's own, and nothing learns from them.

A reply that the server withheld or garbled is an ``InfrastructureError``, never an empty answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from searchrl.errors import InfrastructureError, InputError
from searchrl.models.chat import encode_text, render_chat
from searchrl.models.counting import estimate_chat, estimate_tokens
from searchrl.models.options import HttpModelOptions
from searchrl.models.protocol import (
    ChatModel,
    Completion,
    LanguageModel,
    Message,
    Sampling,
    StopReason,
    cut_at_stop,
)
from searchrl.models.replicas import ReplicatedChatModel
from searchrl.models.replies import ReplyStore, Usage
from searchrl.models.tokenizers import load_tokenizer
from searchrl.transport.keys import Credential, read_key
from searchrl.transport.service import Call, Patience, Service
from searchrl.transport.store import answer_key

if TYPE_CHECKING:
    import httpx2
    from transformers import PreTrainedTokenizerBase

_MILLION = 1_000_000

Read = TypeVar("Read")


class ServedModel:
    """One model of one server, asked through a store of replies.

    Args:
        options: where it is and how it is asked.
        store: replies that are not asked for again.
        transport: stands in for the network in tests.
        address: of this server, where ``options`` names several; replies are kept under their url.
    """

    def __init__(
        self,
        options: HttpModelOptions,
        store: ReplyStore,
        transport: httpx2.AsyncBaseTransport | None = None,
        address: str | None = None,
    ) -> None:
        patience = Patience(
            read=options.timeout, deadline=2 * options.timeout, outage=options.outage
        )
        self.options = options
        self._store = store
        key = read_key(options.key_env, "key_env")
        self._service = Service(
            address or options.url,
            None if key is None else Credential(key),
            patience,
            options.concurrency,
            transport=transport,
        )
        self._identity = options.url.rstrip("/")

    async def ask(
        self,
        path: str,
        fields: Mapping[str, Any],
        sampling: Sampling,
        read: Callable[[Mapping[str, Any]], Read],
    ) -> Read:
        """What ``read`` makes of the server's one choice; kept once it could be read.

        Args:
            path: the endpoint, below the server's url.
            fields: what the endpoint is to answer.
            sampling: how.
            read: raises where the choice is not what was asked for.

        Raises:
            InfrastructureError: the server failed, or its reply is no reply.
        """
        body = self._body(fields, sampling)
        key = answer_key(self._identity + path, body)
        known = self._store.get(key, self.options.model)
        if known is not None:
            return read(known)
        answer = await self._service.ask(Call(path, body))
        choice = self._choice(answer)
        result = read(choice)
        self._store.put(key, choice, self._usage(answer))
        return result

    def error(self, what: str) -> InfrastructureError:
        """A failure of this server's."""
        return InfrastructureError(f"{self._service.url}: {self.options.model}: {what}")

    def _body(self, fields: Mapping[str, Any], sampling: Sampling) -> dict[str, Any]:
        body = {
            "model": self.options.model,
            **fields,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            **({"stop": list(sampling.stop)} if sampling.stop else {}),
            **(self.options.extra_body or {}),
        }
        return {name: value for name, value in body.items() if name not in self.options.leave_out}

    def _choice(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise self.error("the reply does not hold exactly one choice")
        choice: dict[str, Any] = choices[0]
        if choice.get("finish_reason") not in ("stop", "length"):
            raise self.error(f"the reply ended with {choice.get('finish_reason')!r}")
        return choice

    def _usage(self, answer: Mapping[str, Any]) -> Usage:
        """What one answer took, by the server's own count; nothing where it does not say."""
        counted = answer.get("usage")
        counts = counted if isinstance(counted, dict) else {}
        prompt, completion = (
            value if isinstance(value := counts.get(name), int) and value >= 0 else 0
            for name in ("prompt_tokens", "completion_tokens")
        )
        options = self.options
        cost = prompt * options.prompt_price + completion * options.completion_price
        return Usage(options.model, 1, 0, prompt, completion, cost / _MILLION)


class HttpChatModel(ChatModel):
    """A served model that replies to messages.

    Args:
        served: the model and its server.
        tokenizer: the model's own; tokens are estimated without one.
    """

    def __init__(
        self, served: ServedModel, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        self._served = served
        self._tokenizer = tokenizer

    @property
    def max_length(self) -> int:
        """Longest prompt plus reply, in tokens."""
        return self._served.options.max_length

    def count(self, text: str) -> int:
        """Tokens of plain text, or an estimate."""
        if self._tokenizer is None:
            return estimate_tokens(text)
        return len(encode_text(self._tokenizer, text))

    def count_chat(self, messages: Sequence[Message]) -> int:
        """Tokens of a chat, or an estimate."""
        if self._tokenizer is None:
            return estimate_chat(messages)
        return len(render_chat(self._tokenizer, messages))

    async def chat(self, messages: Sequence[Message], sampling: Sampling) -> str:
        """The reply to a chat.

        Raises:
            InfrastructureError: the server failed, or withheld its reply.
        """
        rows = [
            # Half a surrogate pair, which JSON can hold, is refused by most servers.
            {"role": m.role, "content": m.content.encode("utf-8", "replace").decode()}
            for m in messages
        ]
        fields = {"messages": rows}
        text = await self._served.ask("/chat/completions", fields, sampling, self._text)
        return cut_at_stop(text, sampling.stop)

    def _text(self, choice: Mapping[str, Any]) -> str:
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if content is None and choice["finish_reason"] == "length":
            # A reasoning model that came to no answer within its budget.
            return ""
        if not isinstance(content, str):
            raise self._served.error("the reply has no text")
        return content


class HttpLanguageModel(LanguageModel):
    """A served model that completes token sequences.

    Args:
        served: the model and its server.
        tokenizer: the model's own.
    """

    def __init__(self, served: ServedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._served = served
        self._tokenizer = tokenizer

    @property
    def max_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._served.options.max_length

    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat in the model's own template, up to where the assistant speaks."""
        return render_chat(self._tokenizer, messages)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return encode_text(self._tokenizer, text)

    async def complete(self, prompt_token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue a prompt.

        Raises:
            InfrastructureError: the server failed.
            InputError: the prompt leaves no room for a token, or the server returns no token ids.
        """
        prompt = list(prompt_token_ids)
        room = self.max_length - len(prompt)
        if not prompt or room < 1:
            raise InputError(
                f"a prompt of {len(prompt)} tokens leaves no room in a context of "
                f"{self.max_length}; lower the retrieval or observation budget"
            )
        limited = Sampling(
            min(sampling.max_tokens, room), sampling.temperature, sampling.stop, sampling.seed
        )
        fields = {
            "prompt": prompt,
            "logprobs": 1,
            "return_token_ids": True,
            "include_stop_str_in_output": True,
        }
        return await self._served.ask("/completions", fields, limited, self._completion)

    def _completion(self, choice: Mapping[str, Any]) -> Completion:
        token_ids = choice.get("token_ids")
        if token_ids is None:
            raise InputError(
                f"{self._served.options.url} returns no token ids, which a searcher needs; use "
                "vLLM 0.10.2 or newer, or searchrl serve-model"
            )
        held = choice.get("logprobs")
        logprobs = held.get("token_logprobs") if isinstance(held, dict) else None
        if not (
            _is_list_of(token_ids, int)
            and _is_list_of(logprobs, float | int)
            and len(logprobs) == len(token_ids)
        ):
            raise self._served.error(
                "the reply does not hold token ids and their log-probabilities"
            )
        text = str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
        return Completion(tuple(token_ids), tuple(map(float, logprobs)), text, _stop_reason(choice))


def open_chat_model(options: HttpModelOptions, store: ReplyStore) -> ChatModel:
    """A served model for a generator or a judge, on one server or on several.

    Raises:
        InputError: a url, the key's variable or the tokenizer is not right.
    """
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
    if not options.replicas:
        return HttpChatModel(ServedModel(options, store), tokenizer)
    # One server's outage is no reason to wait while there are others.
    impatient = options.model_copy(update={"outage": 0.0})
    servers = [
        HttpChatModel(ServedModel(impatient, store, address=address), tokenizer)
        for address in (options.url, *options.replicas)
    ]
    return ReplicatedChatModel(servers, options.outage)


def open_language_model(options: HttpModelOptions, store: ReplyStore) -> HttpLanguageModel:
    """A served model for a searcher that is evaluated.

    Raises:
        InputError: the url, the key's variable or the tokenizer is not right.
    """
    if options.tokenizer is None:
        raise InputError("searcher.tokenizer: a served searcher needs its model's tokenizer here")
    return HttpLanguageModel(ServedModel(options, store), load_tokenizer(options.tokenizer))


def _stop_reason(choice: Mapping[str, Any]) -> StopReason:
    if choice["finish_reason"] == "length":
        return StopReason.LENGTH
    # Servers that return token ids name the stop string; nothing is named for the end token.
    named = isinstance(choice.get("stop_reason"), str)
    return StopReason.STOP_STRING if named else StopReason.END_OF_SEQUENCE


def _is_list_of(value: Any, kind: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)
