"""Rows in slots of fixed shape and place: a token of theirs costs the host one replay and one read.

A row that begins gets its keys and values copied into a free slot, a row that ends frees its slot.
A step takes the slots up to the last that is taken and the keys of the longest row, each rounded up
to one of few sizes (``bucket``), so that few shapes occur. Where rows have left so many slots that
a smaller size would do, the last rows move into those.

What rows share is copied to each: reading it once for several takes shapes that follow who shares.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from searchrl.models.cohort import Begun, Span
from searchrl.models.drawing import Drawing, Row
from searchrl.models.prefix_cache import Layers
from searchrl.models.running import Running
from searchrl.models.slots import Slots
from searchrl.models.static_step import bucket
from searchrl.models.steps import Steps, obstacle
from searchrl.models.token_tree import Indices
from searchrl.models.weight_watch import form_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_LEAST_KEYS = 256
"""No step reads fewer; kernels take whole blocks of keys anyway."""
_ALIGNED = 16
"""A slot's tokens are a multiple of this; fused attention wants its masks so."""


class SlotRows(Running):
    """Rows in slots.

    Args:
        model: of a kind that ``packs``.
        drawing: notes the tokens.
        room: tokens whose keys and values are held at a time.
        steps: runs the steps.
    """

    def __init__(self, model: PreTrainedModel, drawing: Drawing, room: int, steps: Steps) -> None:
        self._model = model
        self._drawing = drawing
        self._room = room
        self._steps = steps
        self._most = (1, _LEAST_KEYS)
        """Slots and their tokens, the most there have been: the next ones begin with as many."""
        self._form: tuple[object, ...] = ()
        self._refused = False
        self.clear()

    def ready(self) -> bool:
        """Nothing runs: whether the model can be run like this, by what it is now."""
        reason = obstacle(self._model)
        if reason is not None:
            if not self._refused:
                logger.warning("tokens are decoded operation by operation: %s", reason)
            self._refused = True
            return False
        form = form_of(self._model)
        if form != self._form:
            self.clear()
            self._form = form
        return True

    @property
    def live(self) -> list[Begun]:
        """See ``Running``."""
        return [one for one in self._rows if one is not None and one.row.stop is None]

    @property
    def busy(self) -> bool:
        """See ``Running``."""
        return bool(self._rows)

    def clear(self) -> None:
        """Drop every row, the slots, and what was recorded on them."""
        self._rows: list[Begun | None] = []
        self._stale = False
        self._slots: Slots | None = None
        self._steps.forget()

    def fitting(self, rows: Sequence[Row]) -> int:
        """See ``Running``."""
        live = [one.row for one in self.live]
        longest = max((row.longest for row in live), default=0)
        count = 0
        for row in rows:
            longest = max(longest, row.longest)
            whole = (len(live) + count + 1) * _rounded(longest)
            if whole > self._room and (count or live):
                break
            count += 1
        return count

    def begin(self, begun: Sequence[Begun]) -> list[tuple[Span, Indices, int]]:
        """See ``Running``; nothing is read together."""
        slots = self._with_room_for(begun)
        free = [slot for slot, one in enumerate(self._rows) if one is None]
        free += range(len(self._rows), len(self._rows) + len(begun))
        for slot, one in zip(free, begun, strict=False):
            slots.put(slot, one)
            one.pieces = []
            self._rows[slot : slot + 1] = [one]
        self._stale = True
        return []

    def step(self) -> list[Row]:
        """See ``Running``."""
        slots = self._slots
        assert slots is not None
        if self._stale:
            self._close_ranks(slots)
            slots.arrange(self._rows)
            self._stale = False
        longest = max(one.position for one in self._rows if one is not None) + 1
        count = min(bucket(len(self._rows)), slots.count)
        length = min(bucket(longest, _LEAST_KEYS), slots.length)
        self._steps.run(self._model, slots, count, length)
        # The one time that the device is waited for.
        told = slots.told[:count].tolist()
        ended = []
        for one, (token, logprob) in zip(self._rows, told, strict=False):
            if one is not None:
                self._drawing.note(one.row, int(token), logprob)
                if one.row.stop is not None:
                    ended.append(one.row)
        return ended

    def leave(self) -> Iterator[tuple[Begun, Layers, Layers]]:
        """See ``Running``."""
        for slot, one in enumerate(self._rows):
            if one is not None and one.row.stop is not None:
                assert self._slots is not None
                self._rows[slot] = None
                self._stale = True
                yield (one, *self._slots.read(slot, one.position))
        while self._rows and self._rows[-1] is None:
            self._rows.pop()

    def _close_ranks(self, slots: Slots) -> None:
        """Move the last rows into free slots, where fewer slots are computed then."""
        count = sum(one is not None for one in self._rows)
        if bucket(count) == bucket(len(self._rows)):
            return
        sources = [slot for slot in range(count, len(self._rows)) if self._rows[slot] is not None]
        targets = [slot for slot in range(count) if self._rows[slot] is None]
        slots.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self._rows[target] = self._rows[source]
        del self._rows[count:]

    def _with_room_for(self, begun: Sequence[Begun]) -> Slots:
        """The slots, or larger ones where rows that begin do not fit."""
        live = [slot for slot, one in enumerate(self._rows) if one is not None]
        rows = [one.row for one in (*self.live, *begun)]
        count, longest = len(rows), max(row.longest for row in rows)
        slots = self._slots
        if slots is not None and count <= slots.count and longest <= slots.length:
            return slots
        self._steps.forget()
        count, length = self._shape(count, longest)
        if slots is None:
            slots = self._slots = Slots.like(begun[0].pieces[0].keys, count, length)
        else:
            slots.resize(count, length, live)
            self._rows = [self._rows[slot] for slot in live]
        self._most = (max(count, self._most[0]), max(length, self._most[1]))
        return slots

    def _shape(self, count: int, longest: int) -> tuple[int, int]:
        """Slots and their tokens: as many as there have been, or what is asked for, as fits."""
        slots = max(bucket(count), self._most[0])
        length = max(bucket(longest, _LEAST_KEYS), self._most[1])
        if slots * length <= self._room:
            return slots, length
        length = _rounded(longest)
        return max(count, min(bucket(count), self._room // length)), length


def _rounded(length: int) -> int:
    return -(-length // _ALIGNED) * _ALIGNED
