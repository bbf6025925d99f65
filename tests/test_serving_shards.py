"""``searchrl serve --shard``: what it refuses to put together, and what it answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2
import pytest

from searchrl.errors import InputError
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.index import build_index
from searchrl.retrieval.protocol import Hit
from searchrl.retrieval.sharded import ShardedRetriever
from searchrl.retrieval.shards import Shard
from searchrl.serving.app import RetrieverApp
from searchrl.serving.client import HttpRetriever
from searchrl.serving.served import IndexOnDisk
from searchrl.serving.settings import ServerSettings
from searchrl.serving.shards import check_shards
from searchrl.serving.wire import ServedIndex, ServedShard
from tests.command_line import refused
from tests.serving_fixtures import ask, corpus, started, until_ready


def part(number: int, of: int = 2, common: str = "x") -> ServedIndex:
    return ServedIndex("bm25", 5, ServedShard(number, of, common))


def test_all_shards_of_one_corpus_in_any_order() -> None:
    check_shards({"http://a": part(2), "http://b": part(1)})


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (ServedIndex("bm25", 5), "http://b: serves no shard"),
        (part(2, of=3), "http://b: is no shard of the corpus and the settings of http://a"),
        (part(2, common="y"), "http://b: is no shard of the corpus and the settings of http://a"),
        (part(1), "http://b: serves shard 1, as http://a does"),
        (None, "nobody serves shard 2 of 2"),
    ],
)
def test_what_does_not_belong_together_is_refused(second: ServedIndex | None, said: str) -> None:
    found = {"http://a": part(1)} | ({} if second is None else {"http://b": second})
    with pytest.raises(InputError, match=said):
        check_shards(found)


def test_one_of_index_and_shards(tmp_path: Path) -> None:
    both = ("--index", tmp_path, "--shard", "http://a")
    for arguments in ((), both):
        assert "one of --index" in refused("serve", *arguments)
    encoder = ("--shard", "http://a", "--encoder", tmp_path)
    assert "--encoder" in refused("serve", *encoder)
    key = ("--shard-key-variable", "SHARD_KEY")
    assert "goes with --shard" in refused("serve", "--index", tmp_path, *key)
    assert "SHARD_KEY" in refused("serve", "--shard", "http://a", *key)


def test_a_server_says_which_shard_it_has(tmp_path: Path) -> None:
    build_index(corpus(), tmp_path / "part", shard=Shard(2, 2))
    served = IndexOnDisk(index=tmp_path / "part")
    application = RetrieverApp(served.open, ServerSettings(), index=served.describe())

    async def script(client: httpx2.AsyncClient) -> dict[str, object]:
        found: dict[str, object] = (await client.get("/v1/index")).json()
        return found

    found = ask(application, script)
    assert (found["kind"], found["passages"]) == ("bm25", 2)
    assert found["shard"]["number"] == found["shard"]["of"] == 2


def test_a_list_through_servers_is_the_list_of_one_index(tmp_path: Path) -> None:
    async def run() -> list[list[Hit]]:
        applications = []
        for number in (1, 2):
            build_index(corpus(), tmp_path / str(number), shard=Shard(number, 2))
            served = IndexOnDisk(index=tmp_path / str(number))
            applications.append(RetrieverApp(served.open, ServerSettings()))
        async with started(applications[0]) as first, started(applications[1]) as second:
            shards = {}
            for name, client, application in zip(
                ("a", "b"), (first, second), applications, strict=True
            ):
                await until_ready(client)
                transport = httpx2.ASGITransport(app=application)
                url = "http://localhost:8000/retrieve"
                shards[name] = HttpRetriever(url, transport=transport)
            return await ShardedRetriever(shards).search(["lake number 3", "Chur"], 4)

    expected = asyncio.run(Bm25Retriever(corpus()).search(["lake number 3", "Chur"], 4))
    assert asyncio.run(run()) == expected
