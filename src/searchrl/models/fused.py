"""Norm and rotation of a model's blocks, with gradients of their own.

PyTorch's autograd takes them apart into elementwise steps, and each step reads and writes all
tokens: on a CPU a step costs what the memory gives. Here the steps go over some rows at a time,
which stay in a core's cache, and no more is kept for the backward pass than it needs: a norm's
input and one number a row, of a rotation nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_NUMBERS_AT_A_TIME = 1 << 16
"""A quarter of a megabyte in single precision: some such tensors fit in a core's cache."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Rows divided by their root mean square, times a weight (arXiv 1910.07467).

    Args:
        x: ``[..., D]``.
        weight: ``[D]``.
        epsilon: added to the mean square.
    """
    found: torch.Tensor = _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return found


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary positions (arXiv 2104.09864): number ``i`` of a head is paired with ``i + D / 2``.

    Args:
        x: ``[N, H, D]``.
        cosines: of each token's angles, ``[N, 1, D / 2]``.
        sines: of the same.
    """
    if torch.compiler.is_compiling():
        first, second = x.chunk(2, dim=-1)
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        return torch.cat(turned, dim=-1)
    found: torch.Tensor = _Rotate.apply(x, cosines, sines)  # type: ignore[no-untyped-call]
    return found


def _pieces(rows: torch.Tensor) -> Iterator[slice]:
    """Rows that are gone over together; all of them where there is no such cache."""
    count, width = len(rows), rows[:1].numel()
    size = max(1, count if rows.is_cuda else _NUMBERS_AT_A_TIME // max(1, width))
    return (slice(start, start + size) for start in range(0, count, size))


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        scales = rows.new_empty(len(rows), 1)
        for own in _pieces(rows):
            norms = torch.linalg.vector_norm(rows[own], dim=-1, keepdim=True)
            scale = norms.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
            scales[own] = scale
            torch.mul(rows[own], scale, out=out[own]).mul_(weight)
        ctx.save_for_backward(rows, weight, scales)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, scales = ctx.saved_tensors
        d_out = gradients[0].reshape(rows.shape)
        d_x, d_weight = torch.empty_like(rows), torch.zeros_like(weight)
        for own in _pieces(rows):
            normal = rows[own] * scales[own]
            product = d_out[own] * normal
            d_weight += product.sum(dim=0)
            mean = (product @ weight).div_(rows.shape[1]).unsqueeze(1)
            part = torch.mul(d_out[own], weight, out=d_x[own])
            part.addcmul_(normal, mean, value=-1).mul_(scales[own])
        return d_x.view(gradients[0].shape), d_weight, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotated(x, cosines, sines, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cosines, sines = ctx.saved_tensors
        return _rotated(gradients[0], cosines, sines, -1), None, None


def _rotated(
    x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, sign: int
) -> torch.Tensor:
    """``x`` rotated by its angles, or with the other sign back."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    half = x.shape[-1] // 2
    for own in _pieces(x):
        first, second = x[own, :, :half], x[own, :, half:]
        cosine, sine = cosines[own], sines[own]
        torch.mul(first, cosine, out=out[own, :, :half]).addcmul_(second, sine, value=-sign)
        torch.mul(second, cosine, out=out[own, :, half:]).addcmul_(first, sine, value=sign)
    return out
