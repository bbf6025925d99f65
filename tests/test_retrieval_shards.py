"""Shards of a corpus, asked together, answer as one index of all of it: to the last bit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from searchrl.data.jsonl import write_jsonl
from searchrl.data.passages import Passage
from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval import shards
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.encoder import load_encoder
from searchrl.retrieval.index import build_index, open_index, read_about
from searchrl.retrieval.options import (
    Bm25Options,
    DenseOptions,
    HybridOptions,
    IndexOptions,
)
from searchrl.retrieval.protocol import Hit, Retriever
from searchrl.retrieval.sharded import ShardedRetriever, merged
from searchrl.retrieval.shards import Shard, parse_shard, set_of
from tests.command_line import good, refused
from tests.encoders import CORPUS, write_encoder
from tests.fakes import FailingRetriever

WORDS = "lake river hill town bridge mill tower abbey ferry market".split()  # noqa: SIM905
QUERIES = ["lake", "old mill by the river", "town tower tower", "nothing of it", ""]


def passages() -> list[Passage]:
    """Lengths and words differ so much that a shard's own statistics would show."""
    draw = random.Random(0)
    return [
        Passage(
            f"p{n:02}", draw.choice(WORDS), " ".join(draw.choices(WORDS[: 1 + n // 4], k=1 + n))
        )
        for n in draw.sample(range(37), 37)
    ]


def build_shards(
    corpus: Path | Sequence[Passage], folder: Path, options: IndexOptions, count: int
) -> ShardedRetriever:
    shards: dict[str, Retriever] = {}
    for number in range(1, count + 1):
        path = folder / str(number)
        build_index(corpus, path, options, shard=Shard(number, count))
        shards[str(path)] = open_index(path)
    return ShardedRetriever(shards)


def test_bm25_lists_are_those_of_one_index(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    write_jsonl(corpus, ({"id": p.id, "title": p.title, "text": p.text} for p in passages()))
    sharded = build_shards(corpus, tmp_path, Bm25Options(), 4)
    whole = Bm25Retriever(passages())
    for k in (1, 5, 100):
        expected = asyncio.run(whole.search(QUERIES, k))
        assert asyncio.run(sharded.search(QUERIES, k)) == expected


def test_words_that_memory_does_not_hold_are_counted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_TERMS", 2)
    sharded = build_shards(passages(), tmp_path, Bm25Options(), 3)
    expected = asyncio.run(Bm25Retriever(passages()).search(QUERIES, 100))
    assert asyncio.run(sharded.search(QUERIES, 100)) == expected
    assert not list(tmp_path.rglob("*.tmp"))


def test_without_the_statistics_of_the_whole_they_are_not() -> None:
    parts = {str(n): Bm25Retriever(passages()[n::3]) for n in range(3)}
    found = asyncio.run(ShardedRetriever(dict(parts)).search(QUERIES, 5))
    assert found != asyncio.run(Bm25Retriever(passages()).search(QUERIES, 5))


def test_nearest_vectors_are_those_of_one_index(tmp_path: Path) -> None:
    options = DenseOptions(encoder=str(write_encoder(tmp_path / "encoder")))
    sharded = build_shards(CORPUS, tmp_path, options, 2)
    whole = build_index(CORPUS, tmp_path / "whole", options)
    asked = ["When was Chur founded?", "Ilanz"]
    expected = asyncio.run(whole.search(asked, 4))
    found = asyncio.run(sharded.search(asked, 4))
    assert [[hit.passage for hit in row] for row in found] == [
        [hit.passage for hit in row] for row in expected
    ]
    for own, other in zip(found, expected, strict=True):
        assert [hit.score for hit in own] == pytest.approx([hit.score for hit in other], rel=1e-6)


def test_a_shard_takes_its_rows_of_vectors_made_elsewhere(tmp_path: Path) -> None:
    options = DenseOptions(encoder=str(write_encoder(tmp_path / "encoder")))
    vectors = load_encoder(options, "passage").encode_passages(CORPUS)
    np.save(tmp_path / "all.npy", vectors)
    part = build_index(CORPUS, tmp_path / "part", options, tmp_path / "all.npy", shard=Shard(2, 4))
    assert [passage.id for passage in part.corpus] == [passage.id for passage in CORPUS[1::4]]
    stored = np.load(next((tmp_path / "part" / "dense").glob("vectors-*.npy")))
    np.testing.assert_array_equal(stored, vectors[1::4])


def test_shards_of_one_corpus_know_each_other(tmp_path: Path) -> None:
    def built(name: str, shard: Shard, corpus: Sequence[Passage], k1: float = 0.9) -> str:
        build_index(corpus, tmp_path / name, Bm25Options(k1=k1), shard=shard)
        return set_of(read_about(tmp_path / name))

    first = built("a", Shard(1, 2), passages())
    assert built("b", Shard(2, 2), passages()) == first
    others = (
        built("c", Shard(2, 2), passages()[1:]),
        built("d", Shard(2, 2), passages(), k1=1.2),
    )
    assert first not in others


def test_what_cannot_be_a_shard_is_refused(tmp_path: Path) -> None:
    for text in ("0/2", "3/2", "2", "2/", "-1/2", "1/2/3", "a/b"):
        with pytest.raises(InputError, match="as in 2/8"):
            parse_shard(text)
    with pytest.raises(InputError, match="only 37 passages"):
        build_index(passages(), tmp_path / "a", shard=Shard(38, 40))
    options = HybridOptions(encoder="none")
    with pytest.raises(InputError, match="build bm25 or dense"):
        build_index(passages(), tmp_path / "a", options, shard=Shard(1, 2))
    assert not (tmp_path / "a").exists()


def test_shards_from_the_command_line(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "index"
    write_jsonl(corpus, ({"id": p.id, "title": p.title, "text": p.text} for p in passages()))
    arguments = ("index", "build", "--corpus", corpus, "--out", out, "--json")
    assert good(*arguments, "--shard", "2/2").json["passages"] == 18
    assert "as in 2/8" in refused(*arguments, "--shard", "two")


def test_a_search_is_of_all_shards_or_fails() -> None:
    good_one = Bm25Retriever(passages()[:9])

    def failure(other: Retriever) -> str:
        sharded = ShardedRetriever({"http://a": good_one, "http://b": other})
        with pytest.raises(InfrastructureError) as caught:
            asyncio.run(sharded.search(["lake"], 3))
        return str(caught.value)

    class Refusing:
        async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            raise InputError("the key is wrong")

    assert failure(FailingRetriever(passages())).startswith("http://b: ")
    assert failure(Refusing()) == "http://b: the key is wrong"
    assert "overlap" in failure(good_one)


def test_equal_scores_are_ordered_by_id() -> None:
    a, b, c = (Hit(Passage(name, "", ""), 1.0) for name in "abc")
    assert merged([[a, c], [b]], 2) == [a, b]
