"""How models lie over the processes that train together.

``Replicated``: every process holds all weights, computes the gradients of its share of the step and
adds them to the others'. The sum is made once, explicitly, when all of a step's micro-batches have
been passed through: torch's DistributedDataParallel would do the same under its hooks, but wants
one forward call for each backward pass and the same number of them everywhere, which packing by
tokens does not give. All replicas then take the same optimizer step, so they stay equal bit for
bit.

``Sharded`` (``sharded``): weights, gradients and optimizer states are cut among the processes.

Gradients are sums over a step's tokens with weights that were set for the whole step
(``averaging``), so adding them up is exact; nothing is averaged over processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from searchrl.training.parallel.processes import ALONE, Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BUCKET = 1 << 24
"""Numbers that are added up together, at least; one larger gradient alone."""


class Layout(Protocol):
    """Where weights and gradients are."""

    processes: Processes
    lockstep: bool
    """Whether all processes have to pass through a model equally often."""

    def trained(self, searcher: PreTrainedModel) -> PreTrainedModel:
        """The model whose weights are learned, to be placed; ``searcher`` makes the episodes."""
        ...

    def place(self, module: nn.Module) -> None:
        """Lay out a module whose forward pass is called as a whole."""
        ...

    def add_gradients(self, module: nn.Module) -> None:
        """Make the gradients those of all processes' backward passes."""
        ...

    def adopt(self, module: nn.Module, searcher: PreTrainedModel) -> None:
        """Take the weights of the searcher, which has been loaded anew, into what is trained."""
        ...

    def updating(
        self, module: nn.Module, searcher: PreTrainedModel
    ) -> AbstractContextManager[None]:
        """Within the block what is trained changes, and after it the searcher has its weights."""
        ...


class Replicated(Layout):
    """All weights on every process; also the layout of one process.

    Args:
        processes: those that train.
    """

    lockstep = False

    def __init__(self, processes: Processes = ALONE) -> None:
        self.processes = processes

    def trained(self, searcher: PreTrainedModel) -> PreTrainedModel:
        """The searcher itself."""
        return searcher

    def place(self, module: nn.Module) -> None:
        """Nothing to do: every process has loaded all of it."""

    def add_gradients(self, module: nn.Module) -> None:
        """See ``Layout``; a parameter that had a part in nobody's pass keeps no gradient."""
        if self.processes.size == 1:
            return
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            return
        had = torch.tensor([float(p.grad is not None) for p in trained])
        self.processes.add(had)
        gradients = []
        for parameter, count in zip(trained, had.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self.processes.add(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def adopt(self, module: nn.Module, searcher: PreTrainedModel) -> None:
        """Nothing to do: they are the same."""

    def updating(
        self, module: nn.Module, searcher: PreTrainedModel
    ) -> AbstractContextManager[None]:
        """Nothing to do: they are the same."""
        return nullcontext()


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one kind together, so that few sums are made and little memory is taken."""
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        other = bucket and (gradient.dtype, gradient.device) != (bucket[0].dtype, bucket[0].device)
        if other or size >= _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
