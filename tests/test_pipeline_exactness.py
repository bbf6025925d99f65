"""T-B05: a thousand dense searches and two hundred of words, against the definitions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from searchrl.data.passages import Passage
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.nearest import nearest
from tests.test_retrieval_bm25 import lucene_scores
from tests.test_retrieval_nearest import brute_force, cloud, scans, stored

pytestmark = pytest.mark.pipeline
TIE = 1e-6
WORDS = [f"w{number}" for number in range(120)]


def test_T_B05_a_thousand_dense_searches_are_brute_force_in_double_precision(
    tmp_path: Path,
) -> None:
    draw = np.random.default_rng(5)
    cases = 0
    for number in range(100):
        count, dimension = int(draw.integers(1, 300)), int(draw.integers(2, 48))
        k, spread = int(draw.integers(1, 20)), float(draw.choice([1.0, 0.1, 0.01]))
        array = cloud(number, count, dimension, spread)
        queries = cloud(number + 1_000, 10, dimension, 1.0)
        ranks = draw.permutation(count).astype(np.int32)
        vectors = stored(array, tmp_path / str(number))
        for scan in scans(vectors):
            found = nearest(queries, vectors, scan, ranks, k)
            for query, ranking in zip(queries, found, strict=True):
                expected = brute_force(array, query, ranks, k)
                exact = array.astype(np.float64) @ query.astype(np.float64)
                apart = np.abs(exact[ranking.rows] - exact[expected])
                assert len(ranking.rows) == len(expected)
                assert ((ranking.rows == expected) | (apart < TIE)).all()
        cases += len(queries)
    assert cases == 1_000


def test_T_B05_two_hundred_searches_of_words_are_the_formula() -> None:
    draw = np.random.default_rng(6)
    odds = 1.0 / np.arange(1, len(WORDS) + 1)

    def words(most: int) -> str:
        size = int(draw.integers(0, most))
        return " ".join(draw.choice(WORDS, size=size, p=odds / odds.sum()))

    for _ in range(20):
        passages = [Passage(f"p{n:03}", words(4), words(80)) for n in range(60)]
        queries = [words(9) for _ in range(10)]
        found = asyncio.run(Bm25Retriever(passages).search(queries, 12))
        for query, hits in zip(queries, found, strict=True):
            scores = lucene_scores(passages, query)
            expected = sorted(scores, key=lambda name: (-scores[name], name))[:12]
            for hit, name in zip(hits, expected, strict=True):
                assert hit.score == pytest.approx(scores[hit.passage.id], abs=1e-5)
                assert hit.passage.id == name or abs(scores[hit.passage.id] - scores[name]) < TIE
