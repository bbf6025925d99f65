"""Attention over token trees, in place of a transformers model's own.

A model is run on one row of tokens, the tree's, and its attention layers are handed to a
``PackedAttention`` that knows which tokens see which. Any model of transformers whose attention
goes through its registry takes part, and its own weights are used: there is no second copy to keep
in step.

On a CPU every node attends to itself, causally, and all of its subtree attends to it at once; the
parts are joined by their log-sum-exp, as in ring attention (arXiv 2310.01889), and the backward
pass repeats them with the joined result. No mask is made and no pair of tokens is computed that no
token sees. Elsewhere FlexAttention takes the rule ``j <= i < subtree_end(j)`` as a block mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from transformers import AttentionInterface

from searchrl.models.token_tree import Indices, Node, TokenTree

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PretrainedConfig

_NAME = "searchrl_packed"

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class PackedAttention(Protocol):
    """Decides what the tokens of a packed row see."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            layer: counted from 0.
            q: ``[1, H, N, D]``, rotated.
            k: ``[1, K, N, D]``, rotated; ``K`` divides ``H``.
            v: ``[1, K, N, D]``.
            scale: of the scores.

        Returns:
            ``[1, H, N, D]``.
        """
        ...


def masked(device: torch.device) -> bool:
    """Whether a device takes one fused call under a mask, and not the parts one by one."""
    return device.type != "cpu"


def packs(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration can be run on packed rows.

    It can where every layer is full attention over rotary positions: what a window, a sink or
    anything recurrent adds, a token tree does not know of.
    """
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    return config.model_type in _FAMILIES and set(layers) == {"full_attention"} and not window


_FAMILIES = frozenset({"qwen2", "qwen3", "llama"})
"""Those whose packed results the tests hold against their padded ones."""


def run_packed(
    trunk: torch.nn.Module,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    attention: PackedAttention,
) -> torch.Tensor:
    """Hidden states of a packed row.

    Args:
        trunk: a model of transformers without its head.
        tokens: ``[N]``.
        positions: each token's place in its own sequence, ``[N]``.
        attention: what the tokens see.

    Returns:
        ``[N, D]``.
    """
    with _attention(trunk.config, _NAME):  # type: ignore[arg-type]
        output = trunk(
            input_ids=tokens.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            packed_attention=attention,
        )
    hidden_ND: torch.Tensor = output.last_hidden_state[0]
    return hidden_ND


def same_attention(config: PretrainedConfig) -> AbstractContextManager[None]:
    """Attention as it is now, for what is computed anew when that may have changed."""
    return _attention(config, config._attn_implementation)


@contextmanager
def _attention(config: PretrainedConfig, name: str | None) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    packed_attention: PackedAttention,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    # Under autocast the projections are in the small form and the rotation is not.
    query, key = query.to(value.dtype), key.to(value.dtype)
    joined = packed_attention.attend(module.layer_idx, query, key, value, scaling)
    return joined.transpose(1, 2), None


AttentionInterface.register(_NAME, _attend)


class TreeAttention:
    """Attention within one token tree, differentiable.

    Args:
        tree: the tree.
        device: where it is computed.
    """

    def __init__(self, tree: TokenTree, device: torch.device) -> None:
        self._nodes = tree.nodes
        self._mask = tree_mask(tree, device) if masked(device) else None

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See ``PackedAttention``."""
        if self._mask is not None:
            return flex_attend(q, k, v, self._mask, scale)
        joined: torch.Tensor = _TreeFunction.apply(q, k, v, self._nodes, scale)  # type: ignore[no-untyped-call]
        return joined


class Partial:
    """Attention results that are joined part by part, for ``N`` tokens of ``H`` heads.

    Invariant: ``out`` is attention over the keys seen so far, ``lse`` the log-sum-exp of their
    scores, in float32 or wider.
    """

    def __init__(self, q: torch.Tensor) -> None:
        wide = torch.promote_types(q.dtype, torch.float32)
        self.out = q.new_zeros(q.shape, dtype=wide)
        self.lse = q.new_full(q.shape[:3], -torch.inf, dtype=wide)

    def first(self, start: int, end: int, part: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Set the result of tokens that have none."""
        self.out[:, :, start:end], self.lse[:, :, start:end] = part

    def join(self, start: int, end: int, part: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Add what these tokens see besides."""
        out, lse = self.out[:, :, start:end], self.lse[:, :, start:end]
        joined = torch.logaddexp(lse, part[1])
        out.mul_((lse - joined).exp_().unsqueeze(-1))
        out.addcmul_(part[0], (part[1] - joined).exp_().unsqueeze(-1))
        lse.copy_(joined)


def attend_nodes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, nodes: Sequence[Node], scale: float
) -> Partial:
    """Attention within a token tree on a CPU; for shapes see ``PackedAttention``."""
    partial = Partial(q)
    for node in nodes:
        own = slice(node.start, node.end)
        part = _flash(q[:, :, own], k[:, :, own], v[:, :, own], 0.0, True, scale=scale)
        partial.first(node.start, node.end, part)
    for node in nodes:
        if node.until > node.end:
            own, below = slice(node.start, node.end), slice(node.end, node.until)
            part = attend_all(q[:, :, below], k[:, :, own], v[:, :, own], scale)
            partial.join(node.end, node.until, part)
    return partial


def attend_masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each row over keys of its own.

    Args:
        q: ``[R, K, H / K, D]``; the queries of one head of keys.
        k: ``[R, K, T, D]``.
        v: ``[R, K, T, D]``.
        bias: ``[R, 1, 1, T]``, 0 or negative infinity, 0 for one key of each row at least.
        scale: of the scores.

    Returns:
        ``[R, K, H / K, D]``, and on a CPU the log-sum-exp of the scores, ``[R, K, H / K]``.
    """
    if masked(q.device):
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(q, k, v, attn_mask=bias, scale=scale), q.new_empty(q.shape[:3])
    out, lse = _flash(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
    return out, lse


def attend_all(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every query sees every key: attention and the log-sum-exp of its scores, on a CPU."""
    out, lse = _flash(q, k, v, 0.0, False, scale=scale)
    return out, lse


class _TreeFunction(torch.autograd.Function):
    """``attend_nodes`` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        nodes: Sequence[Node],
        scale: float,
    ) -> torch.Tensor:
        partial = attend_nodes(q, k, v, nodes, scale)
        out = partial.out.to(q.dtype)
        ctx.nodes, ctx.scale = nodes, scale
        ctx.save_for_backward(q, k, v, out, partial.lse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        [d_out] = gradients
        d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

        def part(rows: slice, keys: slice, causal: bool) -> None:
            # Given the joined result and log-sum-exp, a part's share of the gradient is its own.
            found = _flash_backward(
                d_out[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys],
                out[:, :, rows], lse[:, :, rows], 0.0, causal, scale=ctx.scale,
            )  # fmt: skip
            d_q[:, :, rows] += found[0]
            d_k[:, :, keys] += found[1]
            d_v[:, :, keys] += found[2]

        for node in ctx.nodes:
            own = slice(node.start, node.end)
            part(own, own, True)
            if node.until > node.end:
                part(slice(node.end, node.until), own, False)
        return d_q, d_k, d_v, None, None


def range_mask(starts: Indices, ends: Indices, queries: int, device: torch.device) -> BlockMask:
    """For FlexAttention: query ``i`` sees key ``j`` where ``starts[j] <= i < ends[j]``."""
    from torch.nn.attention.flex_attention import create_block_mask

    first, last = torch.from_numpy(starts).to(device), torch.from_numpy(ends).to(device)

    def sees(batch: Any, head: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (first[j] <= i) & (i < last[j])

    return create_block_mask(sees, None, None, queries, len(starts), device=device.type)


def tree_mask(tree: TokenTree, device: torch.device) -> BlockMask:
    """Which tokens of a tree see which."""
    return range_mask(np.arange(len(tree)), tree.subtree_ends, len(tree), device)


def flex_attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float
) -> torch.Tensor:
    """FlexAttention under a block mask; compiled where there is a GPU."""
    attend = _compiled_flex() if q.is_cuda else _flex()
    joined: torch.Tensor = attend(
        q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return joined


def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _compiled_flex() -> Any:
    return torch.compile(_flex(), dynamic=True)
