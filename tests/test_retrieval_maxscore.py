"""Leaving out what cannot be among the best changes nothing: rows and scores to the last bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.data.passages import Passage
from searchrl.retrieval import bm25
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.maxscore import Accumulator, TermPostings, added_up
from searchrl.retrieval.ranking import best_rows, in_order


def drawn(draw: np.random.Generator, passages: int, holders: int, levels: int) -> TermPostings:
    """A term with few distinct weights, so that scores tie, none above its idf."""
    rows = np.sort(draw.choice(passages, holders, replace=False)).astype(np.int32)
    idf = np.log1p((passages - holders + 0.5) / (holders + 0.5))
    shares = draw.integers(1, levels + 1, holders) / levels
    return TermPostings(rows, (idf * shares).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    passages=st.integers(3_000, 9_000),
    shares=st.lists(st.sampled_from([0.0005, 0.002, 0.02, 0.2, 0.5, 0.9]), min_size=1, max_size=9),
    levels=st.sampled_from([1, 3, 1_000]),
    k=st.sampled_from([1, 3, 10, 200]),
    repeats=st.booleans(),
)
def test_the_best_are_those_of_all_sums(
    seed: int, passages: int, shares: list[float], levels: int, k: int, repeats: bool
) -> None:
    draw = np.random.default_rng(seed)
    terms = [drawn(draw, passages, max(1, int(share * passages)), levels) for share in shares]
    terms += terms[:1] if repeats else []
    scores = np.zeros(passages, np.float32)
    for term in terms:
        scores[term.rows] += term.weights
    ranks = draw.permutation(passages).astype(np.int32)
    accumulator = Accumulator(passages)
    for _ in range(2):  # the second meets what the first left behind
        rows = accumulator.candidates(terms, k)
        if rows is None:
            assert np.count_nonzero(scores) < k
            continue
        found = added_up(terms, rows)
        best = in_order(np.arange(len(rows)), found, ranks[rows])[:k]
        assert rows[best].tolist() == best_rows(scores, ranks, k).tolist()
        assert (found == scores[rows]).all()


def test_frequent_words_are_only_looked_up() -> None:
    draw = np.random.default_rng(0)
    terms = [drawn(draw, 50_000, count, 1_000) for count in (30, 300, 20_000, 40_000)]
    rows = Accumulator(50_000).candidates(terms, 10)
    assert rows is not None
    assert 10 <= len(rows) <= 330


def test_threads_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    passages = [
        Passage(f"p{n}", "", " ".join(f"w{n % m}" for m in range(2, 40))) for n in range(400)
    ]
    retriever = Bm25Retriever(passages)
    queries = [f"w{n % 3} w{n} w{n * 7 % 31} w1" for n in range(60)]
    expected = [retriever.top(query, 5) for query in queries]
    monkeypatch.setattr(bm25, "SMALL", 0)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda query: retriever.top(query, 5), queries)) == expected
