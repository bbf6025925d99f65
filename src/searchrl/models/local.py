"""A language model in this process, on PyTorch, CPU or GPU.

Concurrent calls of ``complete`` are gathered: whenever an output ends, the model waits until the
tasks of the event loop have all asked for what they want, takes that in, and decodes on. Who is
decoded together is therefore a function of the requests alone, never of timing, and a repeated run
repeats it.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchrl.errors import InputError, SearchRLError
from searchrl.models.adapter_files import is_adapter
from searchrl.models.chat import encode_text, render_chat
from searchrl.models.decoder import Decoder
from searchrl.models.drawing import Request, Row
from searchrl.models.options import Decoding, VllmOptions
from searchrl.models.packed_blocks import packs
from searchrl.models.packed_decoder import PackedDecoder
from searchrl.models.padded_decoder import PaddedDecoder
from searchrl.models.protocol import Completion, LanguageModel, Message, Sampling
from searchrl.models.steps import open_steps
from searchrl.models.tokenizers import load_tokenizer, model_path
from searchrl.models.vllm_decoder import open_vllm_decoder
from searchrl.models.weights import check_base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TEXTS_KEPT = 1024
"""Whose tokens are remembered, four bytes each: what is shown is counted, cut, counted again, and
then read."""
_QUIET_ROUNDS = 3
"""Turns of the event loop without a new request after which a batch starts."""


@dataclass(slots=True)
class _Asked:
    row: Row
    future: asyncio.Future[Completion]


class LocalModel(LanguageModel):
    """A causal language model of transformers behind the ``LanguageModel`` protocol.

    Args:
        model: the model, on the device it shall run on. It may be trained between calls.
        tokenizer: its tokenizer, with a chat template.
        thinking: whether it may use a think mode of its own.
        cache_gib: GiB of keys and values for what is decoded at a time.
        vllm: have it decoded by vLLM, opened like this.
        decoding: how this process decodes, see ``LocalModelOptions``.

    Raises:
        InputError: vLLM is asked for and cannot be opened, or ``decoding`` does not go with the
            model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        thinking: bool = True,
        cache_gib: float = 1.0,
        vllm: VllmOptions | None = None,
        decoding: Decoding = "auto",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        keep = lru_cache(_TEXTS_KEPT)
        self._encoded = keep(lambda text: array("i", encode_text(tokenizer, text)))
        self._rendered = keep(lambda chat: array("i", render_chat(tokenizer, chat, thinking)))
        self._decoder = _open_decoder(
            model, tokenizer, _context_length(model), cache_gib, vllm, decoding
        )
        self._waiting: list[_Asked] = []
        self._decoding: list[_Asked] = []
        self._serving: asyncio.Task[None] | None = None

    @property
    def max_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._decoder.max_length

    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat in the model's own template, up to where the assistant speaks."""
        return list(self._rendered(tuple(messages)))

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self._encoded(text))

    async def complete(self, prompt_token_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Continue a prompt, batched with whatever else is being asked.

        Raises:
            InputError: the request cannot be decoded, a prompt without room for a token above all.
        """
        request = Request(tuple(prompt_token_ids), sampling)
        self._decoder.drawing.check(request)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(self._decoder.drawing.row(request), future))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
            # Ctrl-C ends the event loop by itself; left unread, the task would tell of it again.
            self._serving.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await future

    def rest(self) -> None:
        """Give up memory that decoding alone needs, until the next call."""
        self._decoder.rest()

    def measures(self) -> dict[str, float]:
        """Metrics of its decoder's latest work, by name."""
        return self._decoder.measures()

    async def _serve(self) -> None:
        while self._waiting or self._decoding:
            await self._settle()
            self._drop_abandoned()
            try:
                self._admit()
                self._decoder.advance()
            except Exception as error:  # noqa: BLE001 - unheard, it would leave all waiting forever
                self._fail(error)
            self._tell()

    def _drop_abandoned(self) -> None:
        """Let go of what nobody waits for any more."""
        self._waiting = [asked for asked in self._waiting if not asked.future.done()]
        abandoned = [asked for asked in self._decoding if asked.future.done()]
        if abandoned:
            self._decoder.drop([asked.row for asked in abandoned])
            self._decoding = [asked for asked in self._decoding if not asked.future.done()]

    def _admit(self) -> None:
        """Begin with what waits, once it is much beside what is being decoded.

        Prefilling few prompts at a time costs more than letting them wait for others.
        """
        if 2 * len(self._waiting) < len(self._decoding) or not self._waiting:
            return
        begun, self._waiting = self._waiting, []
        # Moved before it is tried: what fails to begin has failed.
        self._decoding += begun
        count = self._decoder.admit([asked.row for asked in begun])
        self._waiting = begun[count:]
        self._decoding = self._decoding[: len(self._decoding) - len(self._waiting)]

    def _tell(self) -> None:
        """Hand completions to those who wait for them."""
        for asked in self._decoding:
            if asked.row.stop is not None and not asked.future.done():
                asked.future.set_result(self._decoder.drawing.completion(asked.row))
        self._decoding = [asked for asked in self._decoding if asked.row.stop is None]

    def _fail(self, error: Exception) -> None:
        failed, self._decoding = self._decoding, []
        self._decoder.forget()
        for asked in failed:
            if not asked.future.done():
                asked.future.set_exception(error)

    async def _settle(self) -> None:
        quiet, seen = 0, len(self._waiting)
        while quiet < _QUIET_ROUNDS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)


def _open_decoder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_gib: float,
    vllm: VllmOptions | None,
    decoding: Decoding,
) -> Decoder:
    if vllm is not None:
        return open_vllm_decoder(model, tokenizer, max_length, vllm)
    if packs(model.config):
        memory, steps = round(cache_gib * 2**30), open_steps(model, decoding)
        return PackedDecoder(model, tokenizer, max_length, memory, steps=steps)
    if decoding in ("graph", "compiled"):
        raise InputError(
            f'decoding = "{decoding}": a {model.config.model_type!r} model is decoded on padded '
            'rows, by its own code; use "eager" or leave it out'
        )
    return PaddedDecoder(model, tokenizer, max_length)


def load_model(
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    thinking: bool = True,
    cache_gib: float = 1.0,
    vllm: VllmOptions | None = None,
    decoding: Decoding = "auto",
) -> LocalModel:
    """Load a model by path, hub name, or ``tiny-searcher`` / ``tiny-generator``.

    Weights are read from safetensors only and no code from a model repository is run. A directory
    that holds an adapter is loaded as its base with the adapter merged into it.

    Raises:
        InputError: there is no such model, or it cannot be loaded, or ``vllm`` is given and cannot
            be opened, or ``decoding`` does not go with the model.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = model_path(name)
    base = model_path(check_base(Path(path))) if is_adapter(path) else path
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise InputError(f"model {name!r}: no dtype {dtype!r}; use float32, bfloat16 or float16")
    tokenizer = load_tokenizer(name)
    try:
        model, missing = _load_weights(base, kind, device)
    except Exception as error:
        # The libraries below raise errors of many kinds for files that are not theirs.
        reason = " ".join(str(error).split())
        raise InputError(f"model {name!r}: cannot be loaded: {reason[:300]}") from error
    if missing:
        raise InputError(f"model {name!r}: its weights lack {missing[0]!r}; copy all its files")
    if base != path:
        from searchrl.models.adapters import apply_adapter

        apply_adapter(model, Path(path))
    return LocalModel(model, tokenizer, thinking, cache_gib, vllm, decoding)


def _load_weights(path: str, dtype: torch.dtype, device: str) -> tuple[PreTrainedModel, list[str]]:
    """The model on its device, and the names of weights that no file holds."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    model, report = loaded
    return model.to(device).eval(), sorted(report["missing_keys"])


def _context_length(model: PreTrainedModel) -> int:
    length = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise SearchRLError(f"{type(model).__name__}: its configuration names no context length")
    return length
