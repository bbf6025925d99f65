"""Tensors of fixed shape and place that decoding steps read and write: a slot for each row.

Whatever a step needs of a row lies in its slot, its keys and values too, so a step is told nothing
but how many slots to take and how many keys of each. A slot that is free is computed like the
others, and nobody reads what comes of it. It begins at place 0 whenever slots are arranged anew,
so it never gets further than a row that has been going since then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from searchrl.models.cohort import Begun, fill
from searchrl.models.prefix_cache import Layers


@dataclass(slots=True)
class Slots:
    """S slots of T tokens.

    Attributes:
        keys: of each layer, ``[S, K, T, D]``.
        values: of each layer, ``[S, K, T, D]``.
        tokens: what is fed next, S.
        ends: its place, and that of its key, S.
        temperatures: of the rows' distributions, S.
        random: whether the row draws; the likeliest token is taken otherwise, S.
        points: where in [0, 1) it draws, by the place of the token fed, ``[S, T]``.
        told: the token that a step drew and its log-probability, ``[S, 2]``, in double precision,
            which holds any token exactly.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    tokens: torch.Tensor
    ends: torch.Tensor
    temperatures: torch.Tensor
    random: torch.Tensor
    points: torch.Tensor
    told: torch.Tensor

    @classmethod
    def like(cls, layers: Layers, count: int, length: int) -> Slots:
        """Free slots for keys and values of the form of ``layers``, ``[1, K, n, D]`` each."""
        first = layers[0]
        shape = (count, first.shape[1], length, first.shape[3])
        numbers = first.new_zeros(count, dtype=torch.int64)
        return cls(
            [first.new_zeros(shape) for _ in layers],
            [first.new_zeros(shape) for _ in layers],
            numbers,
            numbers.clone(),
            first.new_ones(count, dtype=torch.float32),
            first.new_zeros(count, dtype=torch.bool),
            first.new_zeros(count, length, dtype=torch.float64),
            first.new_zeros(count, 2, dtype=torch.float64),
        )

    @property
    def count(self) -> int:
        """Slots that there are."""
        return self.points.shape[0]

    @property
    def length(self) -> int:
        """Tokens that a slot has room for."""
        return self.points.shape[1]

    def put(self, slot: int, one: Begun) -> None:
        """Copy the keys and values of a row that begins, and where it draws, into its slot."""
        fill(one.pieces, self.keys, self.values, slot)
        if one.row.uniforms:
            first = len(one.prompt) - 1
            points = torch.tensor(one.row.uniforms, dtype=torch.float64)
            self.points[slot, first : first + len(points)] = points.to(self.points.device)

    def arrange(self, rows: Sequence[Begun | None]) -> None:
        """Say which row is in each slot and how far it is; a slot of ``None`` is free."""
        free = [None] * (self.count - len(rows))
        states = [_state(one) for one in (*rows, *free)]
        places = (self.tokens, self.ends, self.temperatures, self.random)
        for place, numbers in zip(places, zip(*states, strict=True), strict=True):
            place.copy_(torch.tensor(numbers))

    def read(self, slot: int, length: int) -> tuple[Layers, Layers]:
        """Keys and values of a row's first tokens, ``[1, K, length, D]`` a layer."""
        one, own = slice(slot, slot + 1), slice(0, length)
        return (
            tuple(layer[one, :, own] for layer in self.keys),
            tuple(layer[one, :, own] for layer in self.values),
        )

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what is in some slots into others."""
        device = self.points.device
        old, new = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        for layer in (*self.keys, *self.values, self.points):
            layer[new] = layer[old]

    def resize(self, count: int, length: int, sources: Sequence[int]) -> None:
        """Make slots of another number and size, the first of them with what ``sources`` hold.

        One layer at a time, so that no more than one is there twice.
        """
        chosen = torch.tensor(sources, device=self.points.device, dtype=torch.int64)
        kept = min(length, self.length)
        for layers in (self.keys, self.values):
            for index, old in enumerate(layers):
                layers[index] = old.new_zeros(count, old.shape[1], length, old.shape[3])
                layers[index][: len(sources), :, :kept] = old[chosen, :, :kept]
        points, self.points = self.points, self.points.new_zeros(count, length)
        self.points[: len(sources), :kept] = points[chosen, :kept]
        for name in ("tokens", "ends", "temperatures", "random", "told"):
            old = getattr(self, name)
            setattr(self, name, old.new_zeros(count, *old.shape[1:]))


def _state(one: Begun | None) -> tuple[int, int, float, bool]:
    """A slot's token, its place, the temperature, and whether it draws."""
    if one is None:
        return 0, 0, 1.0, False
    return one.row.token_ids[-1], one.position, one.row.temperature, bool(one.row.uniforms)
