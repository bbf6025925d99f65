"""Leaving out what cannot be among the best changes nothing: rows and scores to the last bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.data.passages import Passage
from searchrl.retrieval import bm25, maxscore, postings_tables
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.maxscore import LEVELS, Accumulator, TermPostings, added_up, fill_table
from searchrl.retrieval.ranking import best_rows, in_order


def drawn(draw: np.random.Generator, passages: int, holders: int, levels: int) -> TermPostings:
    """A term with few distinct weights, so that scores tie; rarer ones weigh more, most often."""
    rows = np.sort(draw.choice(passages, holders, replace=False)).astype(np.int32)
    idf = np.log1p((passages - holders + 0.5) / (holders + 0.5)) * draw.uniform(0.5, 2)
    shares = draw.integers(1, levels + 1, holders) / levels
    weights = (idf * shares).astype(np.float32)
    return TermPostings(rows, weights, float(weights.max()))


def with_tables(terms: list[TermPostings], passages: int, holders: int) -> list[TermPostings]:
    """The same terms; those that at least so many passages hold have tables."""
    frequent = [term.most for term in terms if len(term.rows) >= holders]
    step = max(frequent, default=0.0) / LEVELS
    return [
        replace(term, table=filled(term, passages, step), step=step)
        if len(term.rows) >= holders
        else term
        for term in terms
    ]


def filled(term: TermPostings, passages: int, step: float) -> npt.NDArray[np.uint8]:
    entries = np.zeros(passages, np.uint8)
    fill_table(entries, term.rows, term.weights, step)
    return entries


def checked(terms: list[TermPostings], passages: int, k: int, draw: np.random.Generator) -> None:
    """See that the best of the candidates are the best of all sums."""
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
        assert len(np.unique(rows)) == len(rows)
        found = added_up(terms, rows)
        best = in_order(np.arange(len(rows)), found, ranks[rows])[:k]
        assert rows[best].tolist() == best_rows(scores, ranks, k).tolist()
        assert (found == scores[rows]).all()


SHARES = st.lists(st.sampled_from([0.0005, 0.002, 0.02, 0.2, 0.5, 0.9]), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    passages=st.integers(3_000, 9_000),
    shares=SHARES,
    levels=st.sampled_from([1, 3, 1_000]),
    k=st.sampled_from([1, 3, 10, 200]),
    repeats=st.booleans(),
    tabled=st.sampled_from([1, 16, 10_000]),
    few=st.sampled_from([0, 500]),
)
def test_the_best_are_those_of_all_sums(
    seed: int,
    passages: int,
    shares: list[float],
    levels: int,
    k: int,
    repeats: bool,
    tabled: int,
    few: int,
) -> None:
    draw = np.random.default_rng(seed)
    terms = [drawn(draw, passages, max(1, int(share * passages)), levels) for share in shares]
    terms = with_tables(terms, passages, passages // tabled)
    terms += terms[:1] if repeats else []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(maxscore, "_FEW", few)
        checked(terms, passages, k, draw)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    passages=st.integers(1, 40),
    shares=SHARES,
    levels=st.sampled_from([1, 2, 1_000]),
    k=st.sampled_from([1, 2, 7, 50]),
    tabled=st.integers(1, 50),
    window=st.sampled_from([1, 5, 16, 64]),
    many=st.sampled_from([1, 8]),
    enough=st.sampled_from([1, 4]),
)
def test_windows_of_any_size_find_the_same(
    seed: int,
    passages: int,
    shares: list[float],
    levels: int,
    k: int,
    tabled: int,
    window: int,
    many: int,
    enough: int,
) -> None:
    draw = np.random.default_rng(seed)
    terms = [drawn(draw, passages, max(1, int(share * passages)), levels) for share in shares]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(maxscore, "_FEW", 0)
        patched.setattr(maxscore, "_WINDOW", window)
        patched.setattr(maxscore, "_MANY", many)
        patched.setattr(maxscore, "_ENOUGH", enough)
        checked(with_tables(terms, passages, tabled), passages, k, draw)


def test_more_tables_than_a_byte_adds_up() -> None:
    draw = np.random.default_rng(1)
    terms = [drawn(draw, 3_000, 2_900, 1_000) for _ in range(9)]
    checked(with_tables(terms, 3_000, 1), 3_000, 10, draw)


@pytest.mark.parametrize("holders", [1, 50_001])
def test_frequent_words_are_only_looked_up(holders: int) -> None:
    draw = np.random.default_rng(0)
    terms = [drawn(draw, 50_000, count, 1_000) for count in (30, 300, 20_000, 40_000)]
    rows = Accumulator(50_000).candidates(with_tables(terms, 50_000, holders), 10)
    assert rows is not None
    assert 10 <= len(rows) <= 330


def test_passages_of_frequent_words_alone_are_skipped() -> None:
    draw = np.random.default_rng(0)
    terms = [drawn(draw, 50_000, count, 1_000) for count in (10_000, 20_000, 40_000)]
    rows = Accumulator(50_000).candidates(with_tables(terms, 50_000, 1), 10)
    assert rows is not None
    assert 10 <= len(rows) <= 200


def test_threads_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    passages = [
        Passage(f"p{n}", "", " ".join(f"w{n % m}" for m in range(2, 40))) for n in range(400)
    ]
    monkeypatch.setattr(postings_tables, "SMALL", 0)
    retriever = Bm25Retriever(passages)
    assert len(retriever._postings.tables)
    queries = [f"w{n % 3} w{n} w{n * 7 % 31} w1" for n in range(60)]
    expected = [retriever.top(query, 5) for query in queries]
    monkeypatch.setattr(bm25, "SMALL", 0)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda query: retriever.top(query, 5), queries)) == expected
