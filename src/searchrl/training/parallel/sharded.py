"""Weights, gradients and optimizer states cut among the processes: FSDP2.

A layer's weights are put together for its pass and dropped after it, also those outside the layers
(embedding, head, norms): a pass without gradients is followed by an optimizer step in PPO, and what
was left together would then be weights of before.

Episodes are made by a searcher with all its weights, which a decoder can hold keys and values for.
They are gathered on every process after an update and let go before the next, so the memory for
them is taken while episodes are made and not while the update is. Gathering moves every weight once
a step, as one pass does.

Gradients are summed, not averaged: the weights of a step's tokens are set for the whole step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from searchrl.training.parallel.layout import Layout
from searchrl.training.parallel.processes import Processes
from searchrl.training.parallel.tensors import like, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Sharded(Layout):
    """Each process holds a part of every weight.

    Args:
        processes: those that train, as many as there are parts.
        device: the kind of device that the models are on.
    """

    lockstep = True

    def __init__(self, processes: Processes, device: str) -> None:
        self.processes = processes
        self._mesh: DeviceMesh = init_device_mesh(device, (processes.size,))

    def trained(self, searcher: PreTrainedModel) -> PreTrainedModel:
        """A second model of the same parameters: cutting these leaves the searcher's whole."""
        return copy.deepcopy(searcher, {id(p): p for p in searcher.parameters()})

    def place(self, module: nn.Module) -> None:
        """Cut a module layer by layer, then what is left of it."""
        for layer in _layers(module):
            self._shard(layer)
        self._shard(module)

    def _shard(self, module: nn.Module) -> None:
        fully_shard(module, mesh=self._mesh, reshard_after_forward=True)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)

    def add_gradients(self, module: nn.Module) -> None:
        """Nothing to do: a backward pass adds them up as it goes."""

    def adopt(self, module: nn.Module, searcher: PreTrainedModel) -> None:
        """See ``Layout``."""
        with torch.no_grad():
            for part, full in _pairs(module, searcher):
                part.copy_(like(part, full))

    @contextmanager
    def updating(self, module: nn.Module, searcher: PreTrainedModel) -> Iterator[None]:
        """See ``Layout``."""
        for full in searcher.parameters():
            full.data = full.data.new_empty(0)
        yield
        for part, full in _pairs(module, searcher):
            full.data = whole(part.detach())


def _pairs(
    module: nn.Module, searcher: PreTrainedModel
) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """The parameters of what is trained beside those of the searcher it was made from."""
    yield from zip(module.parameters(), searcher.parameters(), strict=True)


def _layers(module: nn.Module) -> list[nn.Module]:
    """The repeated layers in a module, by the names that its model gives for them."""
    names: set[str] = set()
    for part in module.modules():
        names |= set(getattr(part, "_no_split_modules", None) or ())
    return [part for part in module.modules() if type(part).__name__ in names]
