"""How long episodes can get: the sums of an agent's budgets, and what a shorter model leaves."""

from __future__ import annotations

from searchrl.agents.deep_retrieval import DeepRetrievalOptions
from searchrl.agents.lengths import Lengths, episode_lengths
from searchrl.agents.search_r1 import SearchR1Options
from searchrl.recipe_file import load_recipe


def test_budgets_of_all_turns_are_added_up() -> None:
    lengths = episode_lengths(load_recipe("s3-8-3-3").agent)
    assert lengths == Lengths(2000, 4 * 500 + 3 * (1400 + 64), 4 * 500)
    assert lengths.total == lengths.window == 2000 + 4 * 500 + 3 * (1400 + 64)


def test_a_budget_of_the_whole_episode_counts_before_the_sum() -> None:
    lengths = episode_lengths(SearchR1Options(kind="search_r1"))
    assert lengths == Lengths(2048, 4596, 2500, 4596)
    assert (lengths.total, lengths.window) == (4596, 2048 + 4596)
    alone = episode_lengths(SearchR1Options(kind="search_r1", search=False))
    assert (alone.response, alone.sampled) == (500, 500)


def test_deep_retrieval_writes_once() -> None:
    lengths = episode_lengths(DeepRetrievalOptions(kind="deep_retrieval"))
    assert lengths.response == lengths.sampled


def test_a_shorter_model_leaves_room_for_a_token_at_least() -> None:
    assert Lengths(500, 2000, 900).within(2048) == Lengths(500, 1548, 900)
    assert Lengths(3000, 10, 10).within(2048) == Lengths(2047, 1, 1)
    assert Lengths(500, 100, 100).within(None) == Lengths(500, 100, 100)
    assert Lengths(2048, 4596, 2500, 4596).within(1000).total == 1000
