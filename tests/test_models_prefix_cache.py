"""The prefix cache against a set of all prefixes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.models.prefix_cache import PrefixCache, path_length
from searchrl.models.token_tree import Indices

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12)


def states(token_ids: Indices) -> torch.Tensor:
    """A number a token that depends on all tokens up to it, ``[1, 1, n, 1]``."""
    found, value = [], 1
    for token in token_ids.tolist():
        value = (value * 31 + token + 1) % 1_000_003
        found.append(float(value))
    return torch.tensor(found).reshape(1, 1, -1, 1)


def keep(cache: PrefixCache, token_ids: Indices, known: int = 0) -> None:
    held = states(token_ids)[:, :, known:]
    cache.insert(token_ids, known, (held, held + 0.5), (-held, -held))


def check_match(cache: PrefixCache, token_ids: Indices, length: int) -> None:
    path = cache.match(token_ids)
    assert path_length(path) == length
    if path:
        assert (
            np.concatenate([run.token_ids for run in path]).tolist() == token_ids[:length].tolist()
        )
        keys = torch.cat([run.keys[0] for run in path], dim=2)
        values = torch.cat([run.values[1] for run in path], dim=2)
        assert torch.equal(keys, states(token_ids[:length]))
        assert torch.equal(values, -keys)


@settings(max_examples=60)
@given(SEQUENCES, SEQUENCES)
def test_the_longest_known_prefix_is_found_with_its_own_keys(
    kept: list[list[int]], asked: list[list[int]]
) -> None:
    cache, prefixes = PrefixCache(10_000), {()}
    for row in kept:
        keep(cache, np.array(row))
        prefixes |= {tuple(row[:n]) for n in range(len(row) + 1)}
    assert len(cache) == len(prefixes) - 1
    for row in [*asked, *kept]:
        longest = max(n for n in range(len(row) + 1) if tuple(row[:n]) in prefixes)
        check_match(cache, np.array(row), longest)
    assert len(cache) == len(prefixes) - 1


@settings(max_examples=60)
@given(SEQUENCES, st.integers(4, 20))
def test_it_stays_within_its_budget_and_right(kept: list[list[int]], budget: int) -> None:
    cache = PrefixCache(budget)
    for row in kept:
        keep(cache, np.array(row))
        assert len(cache) <= budget
    for row in kept:
        check_match(cache, np.array(row), path_length(cache.match(np.array(row))))


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(10)
    first, second, third = (np.full(4, token) for token in (1, 2, 3))
    keep(cache, first)
    keep(cache, second)
    cache.match(first)
    keep(cache, third)
    assert [path_length(cache.match(row)) for row in (first, second, third)] == [4, 0, 4]


def test_the_rest_of_a_sequence_needs_its_beginning() -> None:
    cache, row = PrefixCache(100), np.array([1, 2, 3, 4, 5])
    keep(cache, row[:2])
    keep(cache, row, known=2)
    check_match(cache, row, 5)
    cache.clear()
    assert len(cache) == 0
    keep(cache, row, known=2)
    check_match(cache, row, 0)


def test_what_it_keeps_is_a_copy() -> None:
    cache, row = PrefixCache(100), np.array([1, 2, 3])
    held = states(row)
    cache.insert(row, 0, (held,), (-held,))
    held.zero_()
    assert torch.equal(cache.match(row)[0].keys[0], states(row))
