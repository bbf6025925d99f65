"""A model of transformers, run block by block on a packed row of tokens.

Its own modules and weights are used, so there is no second copy to keep in step, and adapters and
whatever else stands in a module's place take part. What is between them is written here for three
families of one shape: attention goes to a ``PackedAttention``, norm and rotation are fused, and the
last block computes no more than keys and values for tokens whose states nobody wants. In a row of
prompts and retrieved text that is most of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from searchrl.models.fused import rms_norm, rotate
from searchrl.models.packed_attention import PackedAttention

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FAMILIES = frozenset({"qwen2", "qwen3", "llama"})
"""Those whose packed results the tests hold against their padded ones."""

_TOKENS_AT_A_TIME = 512
"""That pass through the second half of a block together as a CPU decodes."""


def packs(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration can be run on packed rows.

    It can where every layer is full attention over rotary positions: what a window, a sink or
    anything recurrent adds, a token tree does not know of.
    """
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    return config.model_type in _FAMILIES and set(layers) == {"full_attention"} and not window


def run_packed(
    trunk: Any,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    attention: PackedAttention,
    wanted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states of a packed row.

    Args:
        trunk: a model of transformers without its head, of a kind that ``packs``.
        tokens: ``[N]``.
        positions: each token's place in its own sequence, ``[N]``.
        attention: what the tokens see.
        wanted: the tokens whose states are wanted, in order, ``[U]``; all when left out.

    Returns:
        ``[U, D]``.
    """
    hidden_ND, row = _entered(trunk, tokens, positions, attention)
    with _running(trunk.layers[:-1], row), _running(trunk.layers[-1:], row, wanted):
        for block in trunk.layers:
            hidden_ND = block(hidden_ND)
    return _norm(trunk.norm, hidden_ND)


def run_bare(
    trunk: Any, tokens: torch.Tensor, positions: torch.Tensor, attention: PackedAttention
) -> torch.Tensor:
    """``run_packed`` without what hangs on the blocks (hooks, checkpointing), for a fixed step.

    A step that is recorded or compiled as a whole would run a hook once and never again.
    """
    hidden_ND, row = _entered(trunk, tokens, positions, attention)
    for block in trunk.layers:
        hidden_ND = _block(block, row, None, hidden_ND)
    return _norm(trunk.norm, hidden_ND)


def _entered(
    trunk: Any, tokens: torch.Tensor, positions: torch.Tensor, attention: PackedAttention
) -> tuple[torch.Tensor, _Row]:
    """What goes into the first block, and what is the same in all."""
    hidden_ND = trunk.embed_tokens(tokens)
    angles = trunk.rotary_emb(hidden_ND, positions.unsqueeze(0))
    # Transformers writes each angle twice, for both numbers of a pair.
    cosines, sines = (part[0, :, None].chunk(2, dim=-1)[0].contiguous() for part in angles)
    return hidden_ND, _Row(attention, cosines, sines)


@dataclass(frozen=True, slots=True)
class _Row:
    """What is the same in all blocks of a pass; angles are ``[N, 1, D / 2]``."""

    attention: PackedAttention
    cosines: torch.Tensor
    sines: torch.Tensor


@contextmanager
def _running(blocks: Any, row: _Row, wanted: torch.Tensor | None = None) -> Iterator[None]:
    """Have blocks do this module's work when they are called, hooks and all, for the while."""
    for block in blocks:
        vars(block)["forward"] = partial(_forward, block, row, wanted)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _forward(
    block: Any, row: _Row, wanted: torch.Tensor | None, hidden_ND: torch.Tensor
) -> torch.Tensor:
    run = partial(_block, block, row, wanted)
    # As transformers' own blocks do. The pass computed anew is this one, whatever runs by then.
    if block.gradient_checkpointing and block.training:
        found: torch.Tensor = block._gradient_checkpointing_func(run, hidden_ND)
        return found
    return run(hidden_ND)


def _block(
    block: Any, row: _Row, wanted: torch.Tensor | None, hidden_ND: torch.Tensor
) -> torch.Tensor:
    attention, cosines, sines = block.self_attn, row.cosines, row.sines
    normal_ND = _norm(block.input_layernorm, hidden_ND)
    k = _heads(attention, attention.k_proj(normal_ND), "k_norm")
    v = _heads(attention, attention.v_proj(normal_ND))
    k = rotate(k, cosines, sines)
    if wanted is not None:
        hidden_ND, normal_ND, cosines, sines = (
            some.index_select(0, wanted) for some in (hidden_ND, normal_ND, cosines, sines)
        )
    q = rotate(_heads(attention, attention.q_proj(normal_ND), "q_norm"), cosines, sines)
    # Under autocast the projections are in the small form and the rotation is not.
    q, k, v = (some.to(v.dtype).transpose(0, 1).unsqueeze(0) for some in (q, k, v))
    seen = row.attention.attend(attention.layer_idx, q, k, v, attention.scaling)
    hidden_ND = hidden_ND + attention.o_proj(seen[0].transpose(0, 1).flatten(1))
    return _mixed(block, hidden_ND)


def _mixed(block: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    """The second half of a block, which takes each token for itself."""
    whole = hidden_ND.is_cuda or torch.compiler.is_compiling()
    if whole or not torch.is_inference_mode_enabled():
        mixed: torch.Tensor = block.mlp(_norm(block.post_attention_layernorm, hidden_ND))
        return hidden_ND + mixed
    # A few tokens at a time, so that what is between its matrices stays in a core's cache. The
    # update's passes have to round alike, with gradients and without: those are left whole.
    for start in range(0, len(hidden_ND), _TOKENS_AT_A_TIME):
        own = hidden_ND[start : start + _TOKENS_AT_A_TIME]
        own += block.mlp(_norm(block.post_attention_layernorm, own))
    return hidden_ND


def _heads(attention: Any, projected: torch.Tensor, norm: str | None = None) -> torch.Tensor:
    """``[N, H, D]``, with the norm that some families have for each head."""
    heads = projected.unflatten(-1, (-1, attention.head_dim))
    module = getattr(attention, norm, None) if norm is not None else None
    return heads if module is None else _norm(module, heads)


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    """A module's norm, fused where all is in single precision."""
    small = x.dtype != torch.float32 or module.weight.dtype != torch.float32
    # A compiler fuses what it can see into.
    if small or torch.compiler.is_compiling():
        own: torch.Tensor = module(x)
        return own
    return rms_norm(x, module.weight, module.variance_epsilon)
