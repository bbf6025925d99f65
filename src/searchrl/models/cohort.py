"""Rows that began together, and the keys and values that they read from then on.

What a row has to itself lies in its tail, padded to the longest and allocated once with room for
all it may say. A run that several rows stand on is read once a step for all of them, where that is
worth it. What has ended stays in place until a quarter has, then the rest is moved together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from searchrl.models.drawing import Row
from searchrl.models.packed_attention import (
    Partial,
    Tails,
    attend_all,
    attend_tails,
    bias_beyond,
)
from searchrl.models.prefix_cache import Layers
from searchrl.models.token_tree import Indices

_WORTH_SHARING = 4096
"""Rows times tokens from which on reading a run once for its rows is faster than for each."""


@dataclass(frozen=True, slots=True)
class Span:
    """Keys and values that the rows (or tokens) from ``start`` to ``end`` all see."""

    keys: Layers
    values: Layers
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt: keys and values that are at hand, and who else stands on them."""

    name: int
    keys: Layers
    values: Layers

    def __len__(self) -> int:
        return self.keys[0].shape[2]


@dataclass(slots=True)
class Begun:
    """A row that has been prefilled: its prompt, and the pieces its keys and values are in."""

    row: Row
    prompt: Indices
    pieces: list[Piece]
    shared: int = 0
    """Tokens at the prompt's beginning that it reads with others, outside its tail."""
    left: bool = False
    """Whether what it may be continued from has been handed on."""

    @property
    def position(self) -> int:
        """Of the last token drawn, which is fed next."""
        return len(self.prompt) + len(self.row.token_ids) - 1


class Cohort:
    """Rows that began together, with the keys and values that they read.

    Args:
        rows: in the order of their prompts, so that who stands on the same piece are neighbours.
        share: leave pieces that several rows stand on outside the tails.
        device: where the tails are.
    """

    def __init__(self, rows: Sequence[Begun], share: bool, device: torch.device) -> None:
        self.rows = list(rows)
        self._spans: list[Span] = []
        self._kept: list[tuple[Span, Indices, int]] = []
        like = self.rows[0].pieces[0].keys[0]
        layers = len(self.rows[0].pieces[0].keys)
        tails = self._divide(share)
        lengths = [sum(map(len, tail)) for tail in tails]
        room = max(n + one.row.limit for n, one in zip(lengths, self.rows, strict=True))
        self._keys = [_tails(like, len(tails), room) for _ in range(layers)]
        self._values = [_tails(like, len(tails), room) for _ in range(layers)]
        for index, tail in enumerate(tails):
            fill(tail, self._keys, self._values, index)
        self._lengths = lengths
        self._device = device
        self._places = torch.arange(len(tails), device=device)
        self._ends = torch.tensor(lengths, device=device)
        self._bias = like.new_empty(0)

    @property
    def capacity(self) -> int:
        """Tokens that its tails have room for."""
        return len(self.rows) * self._keys[0].shape[2]

    @property
    def live(self) -> list[Begun]:
        """Rows that have not ended."""
        return [one for one in self.rows if one.row.stop is None]

    def _divide(self, share: bool) -> list[list[Piece]]:
        """Make spans of the pieces that several rows stand on; returns the rest, row by row."""
        standing: dict[int, list[int]] = {}
        for index, one in enumerate(self.rows):
            for piece in one.pieces:
                standing.setdefault(piece.name, []).append(index)
        tails: list[list[Piece]] = []
        for index, one in enumerate(self.rows):
            joint = list(
                itertools.takewhile(
                    lambda piece: (
                        share and len(standing[piece.name]) * len(piece) >= _WORTH_SHARING
                    ),
                    one.pieces,
                )
            )
            for piece in joint:
                if standing[piece.name][0] == index:
                    span = Span(piece.keys, piece.values, index, standing[piece.name][-1] + 1)
                    self._spans.append(span)
                    end = one.shared + len(piece)
                    self._kept.append((span, one.prompt[:end], one.shared))
                one.shared += len(piece)
            tails.append(one.pieces[len(joint) :])
            one.pieces = []
        return tails

    def to_keep(self) -> list[tuple[Span, Indices, int]]:
        """What its rows share, once: keys and values, the tokens up to their end, those before."""
        kept, self._kept = self._kept, []
        return kept

    def begin_step(self) -> None:
        """Make room for one token a row."""
        self._bias = bias_beyond(self._ends, max(self._lengths) + 1, self._keys[0])

    def end_step(self) -> None:
        """Count the token that was fed; rows that have ended write over their last one."""
        for index, one in enumerate(self.rows):
            self._lengths[index] += one.row.stop is None
        self._ends = torch.tensor(self._lengths, device=self._device)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of one new token a row; shapes as in ``PackedAttention``, with N rows."""
        tails = Tails(self._keys[layer], self._values[layer], self._places, self._ends, self._bias)
        own = attend_tails(q, k, v, tails, scale)
        if not self._spans:
            return own[0]
        partial = Partial(q)
        partial.first(0, len(self.rows), own)
        for span in self._spans:
            rows = q[:, :, span.start : span.end]
            joint = attend_all(rows, span.keys[layer], span.values[layer], scale)
            partial.join(span.start, span.end, joint)
        return partial.out.to(q.dtype)

    def leave(self) -> Iterator[tuple[Begun, Layers, Layers]]:
        """Rows that have ended since, with the keys and values of their tails."""
        for index, one in enumerate(self.rows):
            if one.row.stop is not None and not one.left:
                own = slice(0, self._lengths[index])
                one.left = True
                yield (
                    one,
                    tuple(layer[index : index + 1, :, own] for layer in self._keys),
                    tuple(layer[index : index + 1, :, own] for layer in self._values),
                )
        live = [index for index, one in enumerate(self.rows) if one.row.stop is None]
        if live and len(live) <= 0.75 * len(self.rows):
            self._close_ranks(live)

    def _close_ranks(self, live: Sequence[int]) -> None:
        chosen = torch.tensor(live, device=self._device)
        self.rows = [self.rows[index] for index in live]
        self._keys = [layer[chosen] for layer in self._keys]
        self._values = [layer[chosen] for layer in self._values]
        self._lengths = [self._lengths[index] for index in live]
        self._ends, self._places = self._ends[chosen], self._places[: len(live)]
        place = np.searchsorted(live, [[span.start, span.end] for span in self._spans])
        self._spans = [
            Span(span.keys, span.values, int(start), int(end))
            for span, (start, end) in zip(self._spans, place, strict=True)
            if start < end
        ]


def fill(
    pieces: Sequence[Piece],
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    index: int,
) -> None:
    """Copy pieces, one after the other, into row ``index`` of each layer's ``[R, K, T, D]``.

    What stands behind them becomes 0: it is masked, and has to be finite for that.
    """
    place = 0
    for piece in pieces:
        own = slice(place, place + len(piece))
        for layer, (from_keys, from_values) in enumerate(
            zip(piece.keys, piece.values, strict=True)
        ):
            keys[layer][index, :, own] = from_keys[0]
            values[layer][index, :, own] = from_values[0]
        place += len(piece)
    for room in (*keys, *values):
        room[index, :, place:] = 0


def _tails(like: torch.Tensor, rows: int, room: int) -> torch.Tensor:
    """``[R, K, room, D]``, to be filled."""
    return like.new_empty(rows, like.shape[1], room, like.shape[3])
