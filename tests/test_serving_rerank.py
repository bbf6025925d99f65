"""``/rerank``: each query's own documents in a new order, in the form of Search-R1's server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from searchrl.errors import InputError
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.index import build_index
from searchrl.retrieval.rerank import CrossEncoder
from searchrl.serving.app import RetrieverApp
from searchrl.serving.served import IndexOnDisk
from searchrl.serving.settings import MAX_PAIRS, ServerSettings
from tests.encoders import write_encoder
from tests.serving_fixtures import app, ask, corpus


class Letters(CrossEncoder):
    """Scores a pair by the letters the two texts share, and records what it read."""

    def __init__(self) -> None:
        self.read: list[tuple[str, str]] = []

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.read += pairs
        if any(len(query) > 99 for query, _ in pairs):
            raise InputError("a query is longer than the reranker reads")
        return [float(len(set(query) & set(text))) for query, text in pairs]


def reranking(reader: CrossEncoder, key: str | None = None, **settings: Any) -> RetrieverApp:
    index = Bm25Retriever(corpus())
    return RetrieverApp(
        lambda _: index, ServerSettings(**settings), key, open_reader=lambda: reader
    )


def posted(body: Any, application: RetrieverApp) -> httpx2.Response:
    async def script(client: httpx2.AsyncClient) -> httpx2.Response:
        return await client.post("/rerank", json=body)

    response: httpx2.Response = ask(application, script)
    return response


DOCUMENTS = [
    ['"A"\nxyz', '"B"\nabc', '"C"\nab', '"D"\na'],
    [{"id": "x", "title": "E", "text": "q", "url": "let be"}, {"id": "y", "contents": '"F"\nxy'}],
]


def test_each_query_reads_its_own_documents_once() -> None:
    reader = Letters()
    body = {"queries": ["abc", "xy"], "documents": DOCUMENTS, "return_scores": True}
    result = posted(body, reranking(reader)).json()["result"]
    assert [[item["document"]["id"] for item in row] for row in result] == [
        ["1", "2", "3"], ["y", "x"],
    ]  # fmt: skip
    assert [item["score"] for item in result[0]] == [3.0, 2.0, 1.0]
    assert result[1][0]["document"] == {
        "id": "y", "contents": '"F"\nxy', "title": "F", "text": "xy",
    }  # fmt: skip
    assert len(reader.read) == 6


def test_the_number_wanted_and_plain_documents() -> None:
    body = {"queries": "abc", "documents": DOCUMENTS[:1], "rerank_topk": 2}
    [row] = posted(body, reranking(Letters())).json()["result"]
    assert [document["title"] for document in row] == ["B", "C"]
    [row] = posted(body | {"rerank_topk": 100}, reranking(Letters())).json()["result"]
    assert len(row) == 4
    [row] = posted({"queries": ["a"], "documents": [[]]}, reranking(Letters())).json()["result"]
    assert row == []
    assert posted({"queries": [], "documents": []}, reranking(Letters())).json() == {"result": []}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"queries": ["a", "b"], "documents": [[]]}, "one list a query"),
        ({"queries": ["a"], "documents": [[{"id": "x"}]]}, "neither contents nor text"),
        ({"queries": ["a"], "documents": [["x"] * (MAX_PAIRS + 1)]}, "$.documents"),
        ({"queries": ["a"] * 3, "documents": [["x"] * (MAX_PAIRS // 2)] * 3}, "at most 2048"),
        ({"queries": ["a"], "documents": ["x"]}, "$.documents"),
        ({"queries": ["a"], "documents": [[3]]}, "$.documents"),
        ({"queries": ["a"]}, "documents"),
        ({"queries": ["a"], "documents": [["x"]], "rerank_topk": 0}, "rerank_topk"),
        ({"queries": ["a"], "documents": [["x"]], "topk": 3}, "topk"),
        ({"queries": ["a" * 100], "documents": [["x"]]}, "longer than the reranker reads"),
    ],
)
def test_what_cannot_be_ordered_is_refused(body: Any, said: str) -> None:
    response = posted(body, reranking(Letters()))
    assert response.status_code == 422
    assert said in response.json()["detail"]


def test_a_server_without_a_reranker_has_no_such_path() -> None:
    body = {"queries": ["a"], "documents": [["x"]]}
    assert posted(body, app()).status_code == 404
    assert posted(body, reranking(Letters(), key="canary")).status_code == 401

    async def script(client: httpx2.AsyncClient) -> Any:
        return (await client.get("/openapi.json")).json()

    assert "/rerank" not in ask(app(), script)["paths"]
    document = ask(reranking(Letters()), script)
    assert "/rerank" in document["paths"]
    request = document["components"]["schemas"]["RerankRequest"]["properties"]["documents"]
    assert request["items"]["maxItems"] == MAX_PAIRS


def test_what_a_worker_opens_with_a_reranker(tmp_path: Path) -> None:
    build_index(corpus(), tmp_path / "index")
    model = write_encoder(tmp_path / "reranker", labels=1)
    served = IndexOnDisk(index=tmp_path / "index", reranker=str(model))
    [hits] = asyncio.run(served.open(lambda _: None).search(["Chur"], 9))
    assert len(hits) == 5
    assert len(served.open_reader().score([("a", "b")])) == 1
    with pytest.raises(InputError, match="reranker"):
        IndexOnDisk(index=tmp_path / "index", reranker=str(tmp_path / "absent")).open_reader()
