"""The shape of a decoder, read from its ``config.json`` alone, and how many weights it has.

The count is exact for the architectures named here; another one is refused, not guessed at.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchrl.errors import InputError
from searchrl.models.tokenizers import model_path

_ARCHITECTURES = ("qwen2", "qwen3", "llama", "mistral")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder with grouped-query attention and a gated MLP.

    Attributes:
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        layers: blocks.
        heads: query heads.
        kv_heads: key and value heads.
        head_size: width of a head.
        vocabulary: tokens.
        tied: whether the head shares the embedding's weights.
        head_norms: whether queries and keys are normalised a head.
        attention_biases: how many of the four projections of attention have a bias.
        mlp_bias: whether those of the MLP have one.
        context: longest sequence.
        packs: whether it is decoded on packed rows, within a budget of keys and values.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    head_norms: bool
    attention_biases: int
    mlp_bias: bool
    context: int
    packs: bool

    @property
    def linear(self) -> int:
        """Weights of one block's matrices."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def trunk(self) -> int:
        """Weights without the head."""
        outputs = (self.heads, self.kv_heads, self.kv_heads)
        biases = self.head_size * sum(outputs) if self.attention_biases else 0
        biases += self.hidden if self.attention_biases == 4 else 0
        biases += 2 * self.intermediate + self.hidden if self.mlp_bias else 0
        norms = 2 * self.hidden + (2 * self.head_size if self.head_norms else 0)
        block = self.linear + biases + norms
        return self.vocabulary * self.hidden + self.layers * block + self.hidden

    @property
    def weights(self) -> int:
        """All weights, shared ones once."""
        return self.trunk + (0 if self.tied else self.vocabulary * self.hidden)


def read_shape(model: str) -> Shape:
    """The shape of a model by path, hub name, or name of a shipped model.

    Raises:
        InputError: its configuration cannot be had, or is of no architecture known here.
    """
    place = Path(model_path(model))
    file = place / "config.json" if place.is_dir() else _from_hub(model)
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable model configuration ({error})") from error
    return shape_of(config, str(file))


def shape_of(config: Mapping[str, Any], source: str) -> Shape:
    """The shape that a configuration describes; ``source`` names it in complaints.

    Raises:
        InputError: a size is missing, or the architecture is not known here.
    """
    kind = config.get("model_type")
    if kind not in _ARCHITECTURES:
        raise InputError(
            f"{source}: model_type is {kind!r}; memory is known for {', '.join(_ARCHITECTURES)}"
        )

    def size(name: str, fallback: int | None = None) -> int:
        value = config.get(name)
        value = fallback if value is None else value
        if type(value) is not int or value < 1:
            raise InputError(f"{source}: {name} is {value!r}; expected a positive integer")
        return value

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    biased = bool(config.get("attention_bias", False))
    return Shape(
        hidden=hidden,
        intermediate=size("intermediate_size"),
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_size=size("head_dim", hidden // heads),
        vocabulary=size("vocab_size"),
        # transformers leaves out what equals its class's default, which is untied for all of them.
        tied=bool(config.get("tie_word_embeddings", False)),
        head_norms=kind == "qwen3",
        attention_biases=3 if kind == "qwen2" else 4 if biased else 0,
        mlp_bias=kind == "llama" and bool(config.get("mlp_bias", False)),
        context=size("max_position_embeddings"),
        packs=kind != "mistral" and not config.get("use_sliding_window", False),
    )


def _from_hub(model: str) -> Path:
    """The configuration of a model on the hub, from the cache where it is there."""
    from huggingface_hub import hf_hub_download

    # Its warnings of every try would stand before the one line that says what came of them.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(model, "config.json"))
    except Exception as error:
        # The library and its transport raise errors of many kinds.
        reason = " ".join(str(error).split())
        raise InputError(
            f"model {model!r}: its config.json is not on this machine and not to be had from the "
            f"hub ({reason[:200]}); name a directory that holds it"
        ) from error
