"""Token sequences merged at their common prefixes, so that a model computes each prefix once.

The episodes of a group share their prompt, and more for as long as they ask and are told the same.
Sorted, such sequences are a tree in depth-first order: every node is a run of tokens, and all
tokens below a node follow it without a gap. A token then sees exactly the tokens ``j`` before it
whose node's subtree has not ended: ``j <= i < subtree_end(j)``.

Merging is exact: a causal model's state at a token depends on the tokens before it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(slots=True)
class Node:
    """A run of tokens: ``start`` to ``end`` of the tree's order, its subtree up to ``until``."""

    start: int
    end: int
    until: int = 0


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Sequences as one row of tokens.

    Attributes:
        token_ids: of all nodes, in depth-first order; N of them.
        positions: each token's place in its sequence, N.
        nodes: in depth-first order.
        places: for each sequence given, where each of its tokens is in the row; tokens that were
            ``known`` have no place.
    """

    token_ids: Indices
    positions: Indices
    nodes: tuple[Node, ...]
    places: tuple[Indices, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def subtree_ends(self) -> Indices:
        """For each token, where the subtree of its node ends, N."""
        lengths = [node.end - node.start for node in self.nodes]
        return np.repeat(np.array([node.until for node in self.nodes], dtype=np.int64), lengths)


def build_tree(
    sequences: Sequence[Sequence[int] | Indices], known: Sequence[int] | None = None
) -> TokenTree:
    """Merge sequences.

    Args:
        sequences: each of one token or more; equal ones share all their places.
        known: how many first tokens of each sequence are left out, because their keys and values
            are at hand already; fewer than its length.

    Raises:
        ValueError: a sequence has no token to compute.
    """
    rows = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    skipped = list(known) if known is not None else [0] * len(rows)
    if any(len(row) <= skip for row, skip in zip(rows, skipped, strict=True)):
        raise ValueError("every sequence of a token tree needs a token to compute")
    builder = _Builder()
    places: list[Indices] = [np.empty(0, dtype=np.int64)] * len(rows)
    for index in sorted(range(len(rows)), key=lambda index: tuple(sequences[index])):
        places[index] = builder.add(rows[index], skipped[index])
    return builder.tree(places)


def common_prefix(first: Indices, second: Indices) -> int:
    """How many first tokens two sequences share."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length


class _Builder:
    """Takes sequences in sorted order; the nodes of the last one's path stand on a stack."""

    def __init__(self) -> None:
        self._size = 0
        self._tokens: list[Indices] = []
        self._positions: list[Indices] = []
        self._nodes: list[Node] = []
        self._path: list[Node] = []
        self._depth = 0
        """Tokens of the last sequence that were known, and so stand before the path's first."""
        self._last: Indices = np.empty(0, dtype=np.int64)

    def add(self, row: Indices, known: int) -> Indices:
        """Append what the tree does not hold yet; returns the places of the row's tokens."""
        shared = common_prefix(self._last, row) if self._path else 0
        if shared <= known:
            self._cut(0)
            self._depth = shared = known
        else:
            self._cut(shared - self._depth)
        if shared < len(row):
            node = Node(self._size, self._size + len(row) - shared)
            self._tokens.append(row[shared:])
            self._positions.append(np.arange(shared, len(row)))
            self._size = node.end
            self._nodes.append(node)
            self._path.append(node)
        self._last = row
        return np.concatenate([np.arange(node.start, node.end) for node in self._path])

    def _cut(self, length: int) -> None:
        """Close the path after its first ``length`` tokens; a node cut in two becomes two nodes."""
        kept: list[Node] = []
        for node in self._path:
            here = min(node.end - node.start, length)
            length -= here
            if here == node.end - node.start:
                kept.append(node)
                continue
            node.until = self._size
            if here:
                rest = Node(node.start + here, node.end, self._size)
                node.end = rest.start
                self._nodes.append(rest)
                kept.append(node)
        self._path = kept

    def tree(self, places: Sequence[Indices]) -> TokenTree:
        self._cut(0)
        nodes = tuple(sorted(self._nodes, key=lambda node: node.start))
        return TokenTree(
            np.concatenate(self._tokens) if self._tokens else np.empty(0, dtype=np.int64),
            np.concatenate(self._positions) if self._positions else np.empty(0, dtype=np.int64),
            nodes,
            tuple(places),
        )
