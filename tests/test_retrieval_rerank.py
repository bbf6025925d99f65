"""Reranking: the cross-encoder's own order, and each query with its own candidates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from searchrl.data.passages import Passage
from searchrl.errors import InputError
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.options import RerankOptions
from searchrl.retrieval.protocol import Hit
from searchrl.retrieval.rerank import CrossEncoder, RerankedRetriever, load_cross_encoder
from tests.encoders import CORPUS, write_encoder
from tests.fakes import ListRetriever

PAIRS = [("who", "a"), ("who", "somebody, in a longer text"), ("", "x"), ("where is it", "a")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("models") / "reranker", labels=1)


def load(model: Path, **options: Any) -> CrossEncoder:
    return load_cross_encoder(RerankOptions(model=str(model), **options))


class Letters(CrossEncoder):
    """Scores a pair by the letters the two texts share, and records what it read."""

    def __init__(self) -> None:
        self.read: list[tuple[str, str]] = []

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.read += pairs
        return [float(len(set(query) & set(text))) for query, text in pairs]


@pytest.mark.parametrize("labels", [1, 2])
def test_scores_are_those_computed_by_hand(tmp_path: Path, labels: int) -> None:
    path = write_encoder(tmp_path / "reranker", labels=labels)
    tokenizer = AutoTokenizer.from_pretrained(path)
    network = AutoModelForSequenceClassification.from_pretrained(path)
    found = load(path, batch_size=3).score(PAIRS)
    for (query, text), score in zip(PAIRS, found, strict=True):
        with torch.no_grad():
            logits = network(**tokenizer(query, text, return_tensors="pt")).logits[0]
        expected = logits[0] if labels == 1 else logits[1] - logits[0]
        assert score == pytest.approx(float(expected), abs=1e-5)


def test_a_pair_alone_and_in_a_batch_has_one_score(model: Path) -> None:
    together = load(model).score(PAIRS)
    assert together == pytest.approx([load(model).score([pair])[0] for pair in PAIRS], abs=1e-5)
    assert load(model).score([]) == []


letters = st.text("abcd", max_size=4)


@given(
    queries=st.lists(letters, max_size=5),
    texts=st.lists(letters, min_size=1, max_size=8),
    k=st.integers(1, 6),
    depth=st.integers(1, 9),
)
def test_every_query_gets_its_own_candidates_in_the_readers_order(
    queries: list[str], texts: list[str], k: int, depth: int
) -> None:
    passages = [Passage(f"p{number}", "", text) for number, text in enumerate(texts)]
    given_ = {query: passages[len(query) % len(passages) :] for query in queries}
    reader = Letters()
    inner = ListRetriever(passages, given_)
    found = asyncio.run(RerankedRetriever(inner, reader, depth).search(queries, k))
    expected_pairs = []
    for query, hits in zip(queries, found, strict=True):
        candidates = given_[query][: max(k, depth)]
        expected_pairs += [(query, passage.text) for passage in candidates]
        scored = [Hit(p, float(len(set(query) & set(p.text)))) for p in candidates]
        assert hits == sorted(scored, key=lambda hit: (-hit.score, hit.passage.id))[:k]
    assert reader.read == list(dict.fromkeys(expected_pairs))


def test_a_real_retriever_is_reordered_and_never_shortened(model: Path) -> None:
    reader = load(model)
    retriever = RerankedRetriever(Bm25Retriever(CORPUS), reader, depth=3)
    for k in (1, 3, 50):
        hits, same = asyncio.run(retriever.search(["founded Chur", "founded Chur"], k))
        assert hits == same
        assert len(hits) == min(k, len(CORPUS))
        pairs = [("founded Chur", f"{hit.passage.title}\n{hit.passage.text}") for hit in hits]
        assert [hit.score for hit in hits] == pytest.approx(reader.score(pairs), abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    with pytest.raises(InputError, match="at least 1"):
        asyncio.run(retriever.search(["x"], 0))


def test_a_query_as_long_as_the_limit_is_refused_in_one_line(model: Path) -> None:
    assert len(load(model, max_length=20).score([("short", "word " * 500)])) == 1
    with pytest.raises(InputError, match="cannot be cut to 20 tokens"):
        load(model, max_length=20).score([("w" * 100, "text")])


def test_models_that_are_no_rerankers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        load(tmp_path / "absent")
    with pytest.raises(InputError, match="has 3 outputs"):
        load(write_encoder(tmp_path / "three", labels=3))
    with pytest.raises(InputError, match=r"lack 'classifier\.bias'; is it the right kind"):
        load(write_encoder(tmp_path / "encoder"))
