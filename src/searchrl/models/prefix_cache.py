"""Keys and values of token sequences that have been computed, found by prefix.

A tree of runs (as in SGLang's RadixAttention, arXiv 2312.07104): an episode's next turn finds all
it has read and said before, the episodes of a group their prompt. A run is cut in two where a
sequence leaves it. The least recently used ends of the tree go when it outgrows its budget.

What the tree holds belongs to one state of the model's weights; who changes them clears it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from searchrl.models.token_tree import Indices, common_prefix

Layers = tuple[torch.Tensor, ...]
"""One tensor a layer, ``[1, K, n, D]``."""


@dataclass(slots=True, eq=False)
class CachedRun:
    """Some tokens in a row, with their keys and values."""

    token_ids: Indices
    keys: Layers
    values: Layers
    parent: CachedRun | None = None
    children: dict[int, CachedRun] = field(default_factory=dict)
    used: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)


class PrefixCache:
    """The tree.

    Args:
        budget: tokens that are kept.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self.clear()

    def __len__(self) -> int:
        """Tokens held."""
        return self._size

    def clear(self) -> None:
        """Forget everything."""
        self._root = CachedRun(np.empty(0, dtype=np.int64), (), ())
        self._size = 0
        self._clock = 0

    def match(self, token_ids: Indices) -> list[CachedRun]:
        """The runs that make up the longest known prefix; a run is cut to end with it."""
        self._clock += 1
        path: list[CachedRun] = []
        run, depth = self._root, 0
        while depth < len(token_ids):
            child = run.children.get(int(token_ids[depth]))
            if child is None:
                break
            shared = common_prefix(child.token_ids, token_ids[depth:])
            if shared < len(child):
                child = self._cut(child, shared)
            child.used = self._clock
            path.append(child)
            depth += shared
            run = child
        return path

    def insert(self, token_ids: Indices, known: int, keys: Layers, values: Layers) -> None:
        """Keep what is not held of a sequence.

        Args:
            token_ids: all of it.
            known: tokens that ``keys`` and ``values`` leave out. If the tree has let go of any of
                them in the meantime, nothing is kept.
            keys: of the other tokens; they are copied.
            values: of the other tokens; they are copied.
        """
        path = self.match(token_ids)
        depth = path_length(path)
        if depth < known or depth == len(token_ids):
            return
        parent = path[-1] if path else self._root
        start = depth - known
        run = CachedRun(
            token_ids[depth:].copy(),
            tuple(layer[:, :, start:].clone() for layer in keys),
            tuple(layer[:, :, start:].clone() for layer in values),
            parent,
            used=self._clock,
        )
        parent.children[int(token_ids[depth])] = run
        self._size += len(run)
        if self._size > self._budget:
            self._trim()

    def _cut(self, run: CachedRun, length: int) -> CachedRun:
        """Make a run of its first tokens, and its parent's child; the rest becomes its child."""
        parent = run.parent
        assert parent is not None
        first = CachedRun(
            run.token_ids[:length],
            tuple(layer[:, :, :length] for layer in run.keys),
            tuple(layer[:, :, :length] for layer in run.values),
            parent,
            used=run.used,
        )
        parent.children[int(run.token_ids[0])] = first
        run.token_ids = run.token_ids[length:]
        run.keys = tuple(layer[:, :, length:] for layer in run.keys)
        run.values = tuple(layer[:, :, length:] for layer in run.values)
        run.parent = first
        first.children[int(run.token_ids[0])] = run
        return first

    def _trim(self) -> None:
        """Drop ends of the tree until it is within nine tenths of its budget."""
        while self._size > 0.9 * self._budget:
            ends = sorted(self._ends(self._root), key=lambda run: run.used)
            for run in ends[: max(1, len(ends) // 4)]:
                assert run.parent is not None
                del run.parent.children[int(run.token_ids[0])]
                self._size -= len(run)

    def _ends(self, run: CachedRun) -> Iterator[CachedRun]:
        for child in run.children.values():
            if child.children:
                yield from self._ends(child)
            else:
                yield child


def path_length(path: Sequence[CachedRun]) -> int:
    """Tokens of a path."""
    return sum(map(len, path))
