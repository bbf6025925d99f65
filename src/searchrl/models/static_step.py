"""One token for each of some slots, as a function of tensors of fixed shape and place.

What it is told apart from those, how many slots and how many keys, is one of few sizes. It asks
nothing of the device, makes no decision on what it computes, and leaves the slots as the next step
wants them: the token drawn is the next one fed. So a step can be recorded, or compiled, as a whole,
and repeated without a thing being copied to the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from searchrl.models.drawing import distribution, inverse_cdf
from searchrl.models.packed_attention import Tails, attend_tails, bias_beyond
from searchrl.models.packed_blocks import run_bare
from searchrl.models.slots import Slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def bucket(number: int, least: int = 1) -> int:
    """The smallest size that holds a number: doubles of ``least``, and what is halfway between."""
    size = least
    while size < number:
        size *= 2
    between = size // 4 * 3
    return between if least < between and number <= between else size


def static_step(model: PreTrainedModel, slots: Slots, count: int, length: int) -> None:
    """Feed the first ``count`` slots their token and draw the next one.

    Args:
        model: of a kind that ``packs``.
        slots: read, and brought one token further.
        count: slots up to the last that is taken, or more.
        length: keys of the longest row, the new one included, or more.
    """
    ends = slots.ends[:count]
    attention = _SlotAttention(slots, count, length)
    hidden_ND = run_bare(model.model, slots.tokens[:count], ends, attention)
    logits_BV = model.lm_head(hidden_ND)
    logprobs_BV = distribution(logits_BV, slots.temperatures[:count])
    points_B = slots.points[:count].gather(1, ends.unsqueeze(1)).squeeze(1)
    drawn_B = inverse_cdf(logprobs_BV, points_B)
    chosen_B = torch.where(slots.random[:count], drawn_B, logprobs_BV.argmax(dim=-1))
    values_B = logprobs_BV.gather(1, chosen_B.unsqueeze(1)).squeeze(1)
    slots.told[:count] = torch.stack([chosen_B.double(), values_B.double()], dim=1)
    slots.tokens[:count] = chosen_B
    slots.ends[:count] = ends + 1


class _SlotAttention:
    """Each row sees the keys of its slot up to its own token."""

    def __init__(self, slots: Slots, count: int, length: int) -> None:
        self._slots = slots
        self._count = count
        self._rows = torch.arange(count, device=slots.ends.device)
        self._ends = slots.ends[:count]
        self._bias = bias_beyond(self._ends, length, slots.keys[0])

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See ``PackedAttention``."""
        keys, values = self._slots.keys[layer], self._slots.values[layer]
        own = Tails(keys[: self._count], values[: self._count], self._rows, self._ends, self._bias)
        return attend_tails(q, k, v, own, scale)[0]
