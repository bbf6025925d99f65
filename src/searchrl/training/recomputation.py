"""Gradient checkpointing: blocks that compute their activations anew in the backward pass.

Of each block of a model only the input is kept (arXiv 1604.06174), through the layers of
transformers that are made for it and PyTorch's own ``checkpoint``. A block is computed anew as it
was computed, so gradients are bitwise those of a pass that keeps everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from searchrl.errors import InputError


def recompute_blocks(trunk: torch.nn.Module) -> None:
    """Have a model's blocks checkpointed in every pass under ``recomputing``.

    Raises:
        InputError: transformers has no checkpointing for this model.
    """
    blocks = _blocks(trunk)
    if not blocks:
        raise InputError(
            f"gradient_checkpointing: transformers has none for {type(trunk).__name__}; set it to "
            "false"
        )
    run = partial(checkpoint, use_reentrant=False)
    for block in blocks:
        block.gradient_checkpointing = True
        vars(block)["_gradient_checkpointing_func"] = run


@contextmanager
def recomputing(trunk: torch.nn.Module) -> Iterator[None]:
    """Checkpoint blocks for the while, where ``recompute_blocks`` was called and gradients flow.

    Transformers asks a block whether it is in training, and means dropout and checkpointing by it;
    here the block alone is said to be, and what is inside it drops nothing.
    """
    blocks = [block for block in _blocks(trunk) if block.gradient_checkpointing]
    before = [block.training for block in blocks]
    for block in blocks:
        block.training = torch.is_grad_enabled()
    try:
        yield
    finally:
        for block, training in zip(blocks, before, strict=True):
            block.training = training


def _blocks(trunk: torch.nn.Module) -> list[GradientCheckpointingLayer]:
    return [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
