"""Token trees: every prefix once, and who sees whom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.models.token_tree import TokenTree, build_tree, common_prefix

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=9)


def seen_from(tree: TokenTree, place: int) -> list[int]:
    ends = tree.subtree_ends
    return [j for j in range(place + 1) if place < ends[j]]


@settings(max_examples=60)
@given(SEQUENCES)
def test_every_distinct_prefix_is_one_token_that_sees_itself_alone(
    sequences: list[list[int]],
) -> None:
    tree = build_tree(sequences)
    assert len(tree) == len({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)})
    for sequence, places in zip(sequences, tree.places, strict=True):
        assert tree.token_ids[places].tolist() == sequence
        assert tree.positions[places].tolist() == list(range(len(sequence)))
        for count, place in enumerate(places.tolist(), start=1):
            assert seen_from(tree, place) == places[:count].tolist()


@settings(max_examples=60)
@given(SEQUENCES)
def test_nodes_cover_the_row_in_depth_first_order(sequences: list[list[int]]) -> None:
    tree = build_tree(sequences)
    assert [n.start for n in tree.nodes] == [0, *(n.end for n in tree.nodes[:-1])]
    assert tree.nodes[-1].end == len(tree)
    for node in tree.nodes:
        assert node.start < node.end <= node.until <= len(tree)
        below = [other for other in tree.nodes if node.start < other.start < node.until]
        assert all(other.until <= node.until for other in below)


@settings(max_examples=60)
@given(SEQUENCES, st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=5))
def test_what_is_known_is_left_out_and_the_rest_is_merged(
    sequences: list[list[int]], held: list[list[int]]
) -> None:
    prefixes = {tuple(h[:n]) for h in held for n in range(len(h) + 1)} | {()}
    known = [max(n for n in range(len(s)) if tuple(s[:n]) in prefixes) for s in sequences]
    tree = build_tree(sequences, known)
    for sequence, skip, places in zip(sequences, known, tree.places, strict=True):
        assert tree.token_ids[places].tolist() == sequence[skip:]
        assert tree.positions[places].tolist() == list(range(skip, len(sequence)))
        for count, place in enumerate(places.tolist(), start=1):
            assert seen_from(tree, place) == places[:count].tolist()


def test_a_sequence_with_nothing_to_compute_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a token"):
        build_tree([[1, 2], []])
    with pytest.raises(ValueError, match="needs a token"):
        build_tree([[1, 2]], [2])


def test_common_prefix() -> None:
    first = np.array([1, 2, 3])
    assert common_prefix(first, np.array([1, 2, 3, 4])) == 3
    assert common_prefix(first, np.array([1, 5])) == 1
    assert common_prefix(first, np.array([], dtype=np.int64)) == 0
