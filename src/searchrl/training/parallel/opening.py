"""Which layout a run has, and on which device each of its processes trains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from searchrl.errors import InputError
from searchrl.training.parallel.layout import Layout, Replicated
from searchrl.training.parallel.processes import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LARGE = 1_000_000_000
"""Trained weights from which on a searcher is cut: with gradients and moments, 16 GB on each GPU
otherwise, and as much again for a critic."""


def open_layout(
    processes: Processes, wanted: Literal["ddp", "fsdp"] | None, searcher: PreTrainedModel
) -> Layout:
    """The layout that a recipe asks for; that of one process where there is no other."""
    if wanted is None:
        trained = sum(p.numel() for p in searcher.parameters() if p.requires_grad)
        wanted = "fsdp" if trained >= _LARGE else "ddp"
    if processes.size == 1 or wanted == "ddp":
        return Replicated(processes)
    from searchrl.training.parallel.sharded import Sharded

    return Sharded(processes, searcher.device.type)


def check_device(device: str, processes: Processes) -> None:
    """See that each of several processes has a device of its own.

    Raises:
        InputError: they would share a GPU, or one has none.
    """
    if processes.size == 1 or not device.startswith("cuda"):
        return
    if device != "cuda":
        raise InputError(
            f'searcher.device = "{device}": {processes.size} processes take a GPU each; set "cuda"'
        )
    import torch

    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise InputError(
            f"process {local} of this machine has no GPU, there are {found}; "
            "lower torchrun's --nproc-per-node"
        )
