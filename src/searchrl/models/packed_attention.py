"""Attention over token trees, in place of a transformers model's own.

The attention layers of a packed row (``packed_blocks``) are handed to a ``PackedAttention`` that
knows which tokens see which.

On a CPU every node attends to itself, causally, and all of its subtree attends to it at once; the
parts are joined by their log-sum-exp, as in ring attention (arXiv 2310.01889), and the backward
pass repeats them with the joined result. No mask is made and no pair of tokens is computed that no
token sees. Elsewhere FlexAttention takes the rule ``j <= i < subtree_end(j)`` as a block mask.

Where only some tokens' states are wanted, the last layer has queries for those alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from searchrl.models.token_tree import Indices, Node, TokenTree

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

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
            q: ``[1, H, Q, D]``, rotated; of all N tokens, or in the last layer of those whose
                states are wanted.
            k: ``[1, K, N, D]``, rotated; ``K`` divides ``H``.
            v: ``[1, K, N, D]``.
            scale: of the scores.

        Returns:
            ``[1, H, Q, D]``.
        """
        ...


def masked(device: torch.device) -> bool:
    """Whether a device takes one fused call under a mask, and not the parts one by one."""
    return device.type != "cpu"


@dataclass(frozen=True, slots=True)
class Part:
    """Queries that see all of some keys, or each those up to its own place."""

    queries: slice
    keys: slice
    causal: bool


def tree_parts(nodes: Sequence[Node], wanted: Indices) -> tuple[Part, ...]:
    """Attention within a tree as parts that lie side by side and together are all of it.

    Args:
        nodes: of the tree, in depth-first order.
        wanted: the places of the queries there are, in order, each once; all places are keys.

    Returns:
        One causal part for each query first, then what is seen besides.
    """
    first, then = [], []

    def index(place: int) -> int:
        return int(np.searchsorted(wanted, place))

    for node in nodes:
        own = wanted[index(node.start) : index(node.end)]
        # Runs of neighbours; a node is cut where one begins, so that later runs see it as keys.
        begins = own[np.flatnonzero(np.diff(own, prepend=-2) > 1)].tolist()
        starts = [node.start, *(place for place in begins if place > node.start)]
        for start, end in itertools.pairwise([*starts, node.end]):
            run = slice(index(start), index(end))
            if begins and start >= begins[0]:
                length = run.stop - run.start
                first.append(Part(run, slice(start, start + length), causal=True))
            below = slice(run.stop, index(node.until))
            if below.start < below.stop:
                then.append(Part(below, slice(start, end), causal=False))
    return (*first, *then)


@dataclass(frozen=True, slots=True)
class Tails:
    """Keys and values of one layer that rows have to themselves.

    Attributes:
        keys: ``[R, K, T, D]``.
        values: ``[R, K, T, D]``.
        rows: 0 to R - 1.
        ends: where the new token of each row goes, ``[R]``.
        bias: see ``bias_beyond``.
    """

    keys: torch.Tensor
    values: torch.Tensor
    rows: torch.Tensor
    ends: torch.Tensor
    bias: torch.Tensor


class TreeAttention:
    """Attention within one token tree, differentiable.

    Args:
        tree: the tree.
        device: where it is computed.
        wanted: the tokens whose states are wanted, in order; all when left out.
    """

    def __init__(
        self, tree: TokenTree, device: torch.device, wanted: Indices | None = None
    ) -> None:
        every = np.arange(len(tree))
        rows = [every] if wanted is None else [every, wanted]
        if masked(device):
            self._masks = {len(some): tree_mask(tree, some, device) for some in rows}
        else:
            self._parts = {len(some): tree_parts(tree.nodes, some) for some in rows}
        self._masked = masked(device)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See ``PackedAttention``."""
        if self._masked:
            return flex_attend(q, k, v, self._masks[q.shape[2]], scale)
        parts = self._parts[q.shape[2]]
        joined: torch.Tensor = _TreeFunction.apply(q, k, v, parts, scale)  # type: ignore[no-untyped-call]
        return joined


class Partial:
    """Attention results that are joined part by part, for ``N`` tokens of ``H`` heads.

    Invariant: where ``first`` has been called, ``out`` is attention over the keys seen so far and
    ``lse`` the log-sum-exp of their scores, in float32 or wider.
    """

    def __init__(self, q: torch.Tensor) -> None:
        wide = torch.promote_types(q.dtype, torch.float32)
        self.out = torch.empty_like(q, dtype=wide)
        self.lse = q.new_empty(q.shape[:3], dtype=wide)

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


def attend_parts(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: Sequence[Part], scale: float
) -> Partial:
    """Attention within a token tree on a CPU; for shapes see ``PackedAttention``."""
    partial = Partial(q)
    for part in parts:
        rows, keys = part.queries, part.keys
        found = _flash(q[:, :, rows], k[:, :, keys], v[:, :, keys], 0.0, part.causal, scale=scale)
        add = partial.first if part.causal else partial.join
        add(rows.start, rows.stop, found)
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


def bias_beyond(ends: torch.Tensor, length: int, like: torch.Tensor) -> torch.Tensor:
    """What hides the keys behind each row's own: those at ``ends`` and before are seen.

    Args:
        ends: the place of each row's newest key, ``[R]``.
        length: keys that there are of a row.
        like: has the number form.

    Returns:
        ``[R, 1, 1, length]``, 0 or negative infinity.
    """
    unseen = torch.arange(length, device=ends.device) > ends.unsqueeze(1)
    return like.new_zeros(unseen.shape).masked_fill_(unseen, -torch.inf)[:, None, None]


def attend_tails(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tails: Tails,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one new token a row over the row's own keys, which the token's are added to.

    Args:
        q: ``[1, H, R, D]``.
        k: ``[1, K, R, D]``; written to its place.
        v: ``[1, K, R, D]``; written to its place.
        tails: of the rows.
        scale: of the scores.

    Returns:
        ``[1, H, R, D]``, and on a CPU the log-sum-exp of the scores, ``[1, H, R]``.
    """
    tails.keys[tails.rows, :, tails.ends] = k[0].transpose(0, 1)
    tails.values[tails.rows, :, tails.ends] = v[0].transpose(0, 1)
    seen = slice(0, tails.bias.shape[-1])
    query = q[0].transpose(0, 1).unflatten(1, (k.shape[1], -1))
    keys, values = tails.keys[:, :, seen], tails.values[:, :, seen]
    out, lse = attend_masked(query, keys, values, tails.bias, scale)
    return out.flatten(1, 2).transpose(0, 1).unsqueeze(0), lse.flatten(1, 2).T.unsqueeze(0)


def attend_all(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every query sees every key: attention and the log-sum-exp of its scores, on a CPU."""
    out, lse = _flash(q, k, v, 0.0, False, scale=scale)
    return out, lse


class _TreeFunction(torch.autograd.Function):
    """``attend_parts`` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        parts: Sequence[Part],
        scale: float,
    ) -> torch.Tensor:
        partial = attend_parts(q, k, v, parts, scale)
        out = partial.out.to(q.dtype)
        ctx.parts, ctx.scale = parts, scale
        ctx.save_for_backward(q, k, v, out, partial.lse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        [d_out] = gradients
        d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

        for part in ctx.parts:
            rows, keys = part.queries, part.keys
            # Given the joined result and log-sum-exp, a part's share of the gradient is its own.
            found = _flash_backward(
                d_out[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys],
                out[:, :, rows], lse[:, :, rows], 0.0, part.causal, scale=ctx.scale,
            )  # fmt: skip
            d_q[:, :, rows] += found[0]
            d_k[:, :, keys] += found[1]
            d_v[:, :, keys] += found[2]
        return d_q, d_k, d_v, None, None


def range_mask(starts: Indices, ends: Indices, queries: Indices, device: torch.device) -> BlockMask:
    """For FlexAttention: the query of place ``i`` sees key ``j`` if ``starts[j] <= i < ends[j]``.

    Args:
        starts: one a key.
        ends: one a key.
        queries: their places.
        device: where the mask is.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    first, last = torch.from_numpy(starts).to(device), torch.from_numpy(ends).to(device)
    places = torch.from_numpy(queries).to(device)

    def sees(batch: Any, head: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (first[j] <= places[i]) & (places[i] < last[j])

    return create_block_mask(sees, None, None, len(queries), len(starts), device=device.type)


def tree_mask(tree: TokenTree, wanted: Indices, device: torch.device) -> BlockMask:
    """Which tokens of a tree the wanted ones see."""
    return range_mask(np.arange(len(tree)), tree.subtree_ends, wanted, device)


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
