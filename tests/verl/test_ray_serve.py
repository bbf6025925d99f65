"""Shards on Ray Serve answer as one index; one that is gone is never left out of a list."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx2
import pytest
import ray
from ray import serve

from searchrl.data.synthwiki import write_synthwiki
from searchrl.distributed.ray_serve import build
from searchrl.retrieval.index import build_index
from searchrl.retrieval.protocol import IndexRetriever
from searchrl.retrieval.shards import Shard
from searchrl.serving.client import HttpRetriever
from tests.command_line import free_port

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, IndexRetriever]]:
    home = tmp_path_factory.mktemp("world")
    write_synthwiki(home, 200, 3, 20)
    whole = build_index(home / "corpus.jsonl", home / "whole")
    parts = [home / f"part-{number}" for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        build_index(home / "corpus.jsonl", part, shard=Shard(number, 2))
    ray.init(num_cpus=8, include_dashboard=False)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build({"indexes": ",".join(map(str, parts))}), route_prefix="/retrieve")
    yield f"http://127.0.0.1:{port}/retrieve", whole
    serve.shutdown()
    ray.shutdown()


def test_lists_are_those_of_one_index(served: tuple[str, IndexRetriever]) -> None:
    url, whole = served
    queries = ["Who directed it?", *(whole.corpus[row].title for row in range(0, 150, 30))]
    expected = asyncio.run(whole.search(queries, 7))
    assert asyncio.run(HttpRetriever(url).search(queries, 7)) == expected
    plain = httpx2.post(url, json={"queries": queries[1]}, timeout=60).json()
    [[*three]] = asyncio.run(whole.search(queries[1:2], 3))
    assert [[item["id"] for item in row] for row in plain["result"]] == [
        [hit.passage.id for hit in three]
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b'{"queries": 3}', 422), (b'{"queries": "' + b"a" * (1 << 20) + b'"}', 413)],
)
def test_what_is_no_search_is_refused(
    served: tuple[str, IndexRetriever], body: bytes, status: int
) -> None:
    answer = httpx2.post(served[0], content=body, timeout=60)
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_a_shard_that_is_gone_is_waited_for_and_never_left_out(
    served: tuple[str, IndexRetriever],
) -> None:
    url, whole = served
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    [name] = [name for name in names if "#shard-2#" in name]
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)
    expected = asyncio.run(whole.search(["a film"], 5))
    assert asyncio.run(HttpRetriever(url, seconds=120).search(["a film"], 5)) == expected
