"""Token batches: masks, alignment, micro-batches."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchrl.agents.episode import Segment
from searchrl.models.token_tree import build_tree
from searchrl.training.batch import TokenBatch, micro_batches, tree_batches
from tests.training_fixtures import episode, random_shape

CPU = torch.device("cpu")


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_a_batch_holds_exactly_what_the_episodes_hold(seed: int, count: int) -> None:
    draw = random.Random(seed)
    episodes = [episode(draw.randrange(3), 1.0, random_shape(draw)) for _ in range(count)]
    batch = TokenBatch.of(episodes, CPU)
    for row, one in enumerate(episodes):
        length = len(one.token_ids)
        assert batch.padded_BT[row, :length].tolist() == one.token_ids
        assert not batch.padded_BT[row, length:].any()
    sampled = [
        token
        for one in episodes
        for s in one.segments
        if s.origin == "model"
        for token in s.token_ids
    ]
    assert batch.targets_A.tolist() == sampled
    assert batch.lengths_B == tuple(sum(one.trainable_mask) for one in episodes)
    assert sum(batch.lengths_B) == batch.sampled_logprobs_A.numel() == batch.rows_A.numel()
    noted = [value for one in episodes for value in one.logprobs]
    assert batch.sampled_logprobs_A.tolist() == pytest.approx(noted, rel=1e-6)
    before = batch.padded_BT[batch.rows_A, batch.columns_A]
    assert batch.tree.token_ids[batch.places_A.numpy()].tolist() == before.tolist()


def test_outputs_predict_the_token_to_their_right() -> None:
    made = episode(0, 1.0, (("prompt", 2), ("model", 1), ("environment", 2), ("model", 1)))
    batch = TokenBatch.of([made], CPU)
    assert batch.columns_A.tolist() == batch.places_A.tolist() == [1, 4]
    assert batch.targets_A.tolist() == [made.token_ids[2], made.token_ids[5]]


def test_without_masking_observations_are_learned_from_and_prompts_are_not() -> None:
    made = episode(0, 1.0, (("prompt", 2), ("model", 1), ("environment", 2), ("model", 1)))
    batch = TokenBatch.of([made], CPU, mask_retrieved=False)
    assert batch.columns_A.tolist() == [1, 2, 3, 4]
    assert batch.targets_A.tolist() == made.token_ids[2:]
    assert batch.was_sampled_A.tolist() == [True, False, False, True]
    noted = batch.sampled_logprobs_A[batch.was_sampled_A].tolist()
    assert noted == pytest.approx(made.logprobs, rel=1e-6)


def test_an_episode_that_opens_with_a_sampled_token_is_refused() -> None:
    with pytest.raises(ValueError, match="a prompt comes first"):
        TokenBatch.of([episode(0, 1.0, (("model", 3), ("environment", 2)))], CPU)


def test_a_sampled_token_without_its_logprob_is_refused() -> None:
    made = episode(0, 1.0)
    said = made.segments[1]
    made.segments[1] = Segment("model", said.token_ids, "", said.logprobs[1:])
    with pytest.raises(ValueError, match="4 log-probabilities for 5 sampled tokens"):
        TokenBatch.of([made], CPU)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_micro_batches_hold_every_index_once_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = list(micro_batches(lengths, budget))
    assert Counter(i for batch in batches for i in batch) == Counter(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12), st.integers(1, 30)
)
def test_tree_batches_hold_every_index_once_within_the_budget(
    sequences: list[list[int]], budget: int
) -> None:
    batches = list(tree_batches(sequences, budget))
    assert Counter(i for batch in batches for i in batch) == Counter(range(len(sequences)))
    for batch in batches:
        assert len(build_tree([sequences[i] for i in batch])) <= budget or len(batch) == 1
    together = list(tree_batches(sequences, 10**6))
    assert len(together) == min(1, len(sequences))
