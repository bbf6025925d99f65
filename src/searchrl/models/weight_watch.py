"""Notices that a model's weights have changed, however they did.

What a decoder keeps that was computed from weights is worth nothing once they have changed. Neither
sign is enough alone: fused optimizers change weights without counting up their version, and what
loads a checkpoint is no optimizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from torch import nn

_steps = 0
"""Optimizer steps in this process."""


def _count_step(*_: object) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


class WeightWatch:
    """Watches the weights of one model.

    Args:
        model: its parameters are looked at when asked, never held.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen = self._now()

    def changed(self) -> bool:
        """Whether an optimizer has stepped, a parameter was changed or exchanged, or an adapter was
        switched, since this was last asked, or the watch began.
        """
        before, self._seen = self._seen, self._now()
        return self._seen != before

    def _now(self) -> tuple[object, ...]:
        changes = ((p.data_ptr(), p._version) for p in self._model.parameters())
        switches = adapter_switches(self._model)
        return (_steps, *itertools.chain.from_iterable(changes), *switches)


def form_of(model: nn.Module) -> tuple[object, ...]:
    """Where a model's weights are and what computes on them, whatever numbers are there."""
    places = (
        (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        for tensor in itertools.chain(model.parameters(), model.buffers())
    )
    return (*places, *map(type, model.modules()), *adapter_switches(model))


def adapter_switches(model: nn.Module) -> Iterator[tuple[object, ...]]:
    """What decides, at each matrix with an adapter of PEFT, whether and how far it counts."""
    for module in model.modules():
        if "lora_A" in module._modules:
            layer: Any = module
            active, merged = tuple(layer.active_adapters), tuple(layer.merged_adapters)
            yield layer.disable_adapters, active, merged, tuple(layer.scaling.items())
