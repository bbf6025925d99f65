"""Notices that a model's weights have changed, however they did.

What a decoder keeps that was computed from weights is worth nothing once they have changed. Neither
sign is enough alone: fused optimizers change weights without counting up their version, and what
loads a checkpoint is no optimizer.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

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
        """Whether an optimizer has stepped, or a parameter was changed or exchanged, since then.

        Then is the last time this was asked, or when the watch began.
        """
        before, self._seen = self._seen, self._now()
        return self._seen != before

    def _now(self) -> tuple[int, ...]:
        changes = ((p.data_ptr(), p._version) for p in self._model.parameters())
        return (_steps, *itertools.chain.from_iterable(changes))
