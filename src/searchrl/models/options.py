"""What a recipe says about a language model: one in this process, or one behind a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    Field,
    JsonValue,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from searchrl.options import Options

LEAST_TEMPERATURE = 0.01
"""What vLLM raises a temperature between 0 and this to."""
CPU_CACHE = 1 << 30
"""Bytes of keys and values that vLLM has on a CPU, as many as the packed decoder for its rows."""


Decoding = Literal["auto", "eager", "graph", "compiled"]


class LocalModelOptions(Options):
    """A model in this process."""

    kind: Literal["local"] = "local"
    model: str
    """A path, a hub name, or the name of a shipped model."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    thinking: bool = True
    """Whether a model with a think mode of its own, as Qwen3, may use it."""
    cache_gib: PositiveFloat = 1.0
    """GiB of keys and values for what is decoded at a time, and as much again at most for prefixes
    that are kept; more of it decodes more together."""
    decoding: Decoding = "auto"
    """How a token is computed: ``eager``, operation by operation; ``graph``, a step of fixed shapes
    that is recorded as a CUDA graph and replayed; ``compiled``, the same after ``torch.compile``,
    which takes a large model most of a minute for each of some dozens of shapes. ``auto`` is
    ``graph`` on CUDA and ``eager`` elsewhere."""

    @model_validator(mode="after")
    def _check_decoding(self) -> Self:
        if self.decoding == "graph" and not self.device.startswith("cuda"):
            raise ValueError(
                f'decoding = "graph" records CUDA graphs, and device = "{self.device}": '
                'set device = "cuda", use "compiled", or leave it out'
            )
        return self

    @property
    def name(self) -> str:
        """Tells this model, and how it is asked, from others in records and cache keys."""
        return self.model if self.thinking else f"{self.model} without thinking"


class VllmOptions(Options):
    """vLLM as the engine of rollouts."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """The number form it computes in; the weights that are trained stay as they are."""
    memory_share: float = Field(0.3, gt=0, lt=1)
    """Share of a GPU's memory that it takes, its copy of the weights included; on a CPU it takes
    1 GiB beside that copy."""
    sleep: bool = True
    """Whether it gives up a GPU's memory while the update computes."""


class LoraOptions(Options):
    """A low-rank adapter (LoRA, arXiv 2106.09685), which is trained in the place of all weights."""

    rank: PositiveInt = 16
    """Of the two factors that are added to a matrix."""
    alpha: PositiveFloat = 32.0
    """Their product counts ``alpha / rank`` times."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what goes into the factors, in supervised fine-tuning; an update from rewards drops
    nothing, since its log-probabilities have to be those of the searcher that sampled."""
    targets: tuple[str, ...] | None = None
    """Names of the matrices that get factors, as in ``["q_proj", "v_proj"]``; all matrices of the
    blocks when left out."""


class HttpModelOptions(Options):
    """A model behind an OpenAI-compatible server."""

    kind: Literal["http"]
    url: str
    """The server's API as OpenAI's clients take it, as in ``http://127.0.0.1:8001/v1``."""
    replicas: tuple[str, ...] = ()
    """More servers of the same model; requests go where the fewest are."""
    model: str
    """The name the server knows the model by."""
    key_env: str | None = None
    """The environment variable that holds the API key."""
    tokenizer: str | None = None
    """The model's tokenizer (a path or a hub name), to count with; tokens are estimated without."""
    max_length: PositiveInt = 8_192
    """Longest prompt plus reply that is asked for, in tokens."""
    extra_body: dict[str, JsonValue] | None = None
    """More fields for each request, as in ``{top_k = 1}``."""
    leave_out: tuple[str, ...] = ()
    """Fields that the server does not take, as in ``["seed"]``."""
    prompt_price: NonNegativeFloat = 0.0
    """Price of a million prompt tokens, for the account of costs."""
    completion_price: NonNegativeFloat = 0.0
    """Price of a million completion tokens."""
    concurrency: PositiveInt = 32
    """Requests at a time."""
    timeout: PositiveFloat = 120.0
    """Seconds that one answer may take; all tries of a request together take twice that at most."""
    outage: NonNegativeFloat = 600.0
    """Seconds that the work waits for a server that has gone down."""
    cache: Path | None = None
    """Where replies and their costs are kept; ``replies.sqlite`` in the run when left out."""

    @property
    def name(self) -> str:
        """Tells this model, and how it is asked, from others in records and cache keys."""
        fields = {"tokenizer", "max_length", "extra_body", "leave_out"}
        changed = self.model_dump(mode="json", include=fields, exclude_defaults=True)
        how = f" {json.dumps(changed, sort_keys=True)}" if changed else ""
        return f"{self.model} at {self.url}{how}"
