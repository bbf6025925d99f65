"""Steps of cohorts: each operation is launched by itself, on shapes that change with every token.

On a CPU, which computes what it is given as soon as it is, this is the fastest: no row is padded
to more than its cohort's longest, and what several rows stand on is read once for all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from searchrl.models.cohort import Begun, Cohort, Span
from searchrl.models.drawing import Drawing, Row
from searchrl.models.packed_blocks import run_packed
from searchrl.models.prefix_cache import Layers
from searchrl.models.running import Running
from searchrl.models.token_tree import Indices

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Cohorts(Running):
    """Rows in cohorts, one for each time that some began.

    Args:
        model: of a kind that ``packs``.
        drawing: draws the tokens.
        room: tokens whose keys and values are held at a time.
        share: read runs that several rows stand on together.
    """

    def __init__(self, model: PreTrainedModel, drawing: Drawing, room: int, share: bool) -> None:
        self._model = model
        self._drawing = drawing
        self._room = room
        self._share = share
        self._cohorts: list[Cohort] = []

    @property
    def live(self) -> list[Begun]:
        """See ``Running``."""
        return [one for cohort in self._cohorts for one in cohort.live]

    @property
    def busy(self) -> bool:
        """See ``Running``."""
        return bool(self._cohorts)

    def fitting(self, rows: Sequence[Row]) -> int:
        """See ``Running``."""
        taken = sum(cohort.capacity for cohort in self._cohorts)
        count = 0
        for row in rows:
            taken += row.longest
            if taken > self._room and (count or self._cohorts):
                break
            count += 1
        return count

    def begin(self, begun: Sequence[Begun]) -> list[tuple[Span, Indices, int]]:
        """See ``Running``."""
        cohort = Cohort(begun, self._share, self._model.device)
        self._cohorts.append(cohort)
        return cohort.to_keep()

    def step(self) -> list[Row]:
        """See ``Running``."""
        device = self._model.device
        rows = [one for cohort in self._cohorts for one in cohort.rows]
        for cohort in self._cohorts:
            cohort.begin_step()
        hidden_ND = run_packed(
            self._model.model,
            torch.tensor([one.row.token_ids[-1] for one in rows], device=device),
            torch.tensor([one.position for one in rows], device=device),
            _Step(self._cohorts),
        )
        live = [index for index, one in enumerate(rows) if one.row.stop is None]
        logits_BV = self._model.lm_head(hidden_ND[live] if len(live) < len(rows) else hidden_ND)
        for cohort in self._cohorts:
            cohort.end_step()
        drawn = [rows[index].row for index in live]
        self._drawing.draw(drawn, logits_BV)
        return [row for row in drawn if row.stop is not None]

    def leave(self) -> Iterator[tuple[Begun, Layers, Layers]]:
        """See ``Running``."""
        for cohort in self._cohorts:
            yield from cohort.leave()
        self._cohorts = [cohort for cohort in self._cohorts if cohort.live]

    def clear(self) -> None:
        """See ``Running``."""
        self._cohorts = []


class _Step:
    """One new token for each row of each cohort."""

    def __init__(self, cohorts: Sequence[Cohort]) -> None:
        self._cohorts = cohorts

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See ``PackedAttention``."""
        ends = list(itertools.accumulate(len(cohort.rows) for cohort in self._cohorts))
        parts = []
        for cohort, end in zip(self._cohorts, ends, strict=True):
            own = slice(end - len(cohort.rows), end)
            parts.append(cohort.attend(layer, q[:, :, own], k[:, :, own], v[:, :, own], scale))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
