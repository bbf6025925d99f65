"""The HTTP retriever in process: what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from searchrl.data.passages import Passage
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.index import build_index
from searchrl.retrieval.options import DenseOptions
from searchrl.retrieval.protocol import IndexRetriever
from searchrl.serving.app import RetrieverApp
from tests.encoders import CORPUS, PLACES, write_encoder
from tests.serving_fixtures import app, ask, ids


def posted(body: Any, path: str = "/retrieve", application: RetrieverApp | None = None) -> Any:
    """The answer to one request that has to succeed."""

    async def script(client: httpx2.AsyncClient) -> Any:
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    return ask(application or app(), script)


def test_topk_left_out_is_the_servers_own() -> None:
    for asked in ({}, {"topk": None}):
        [row] = posted({"queries": ["lake"], **asked}, application=app(topk=2))["result"]
        assert len(row) == 2


def test_queries_may_be_one_text_many_or_none() -> None:
    assert ids(posted({"queries": "Chur", "topk": 1})["result"]) == [["p2"]]
    assert ids(posted({"queries": ["Davos", "Chur"], "topk": 1})["result"]) == [["p3"], ["p2"]]
    assert posted({"queries": []}) == {"result": []}


def test_without_scores_come_documents_for_any_number_of_queries() -> None:
    for count in (1, 2, 3):
        rows = posted({"queries": ["Chur"] * count, "topk": 2, "return_scores": False})["result"]
        assert [len(row) for row in rows] == [2] * count
        assert {key for row in rows for item in row for key in item} == {
            "id", "contents", "title", "text",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"topk_retrieval": 4, "topk_rerank": 2}, 2),
        ({"topk_retrieval": 2, "topk_rerank": 4}, 2),
        ({"topk_retrieval": 4}, 4),
        ({"topk": 1, "topk_retrieval": 4, "topk_rerank": 2}, 1),
        ({"topk": 2.0}, 2),
    ],
)
def test_the_smallest_limit_given_counts(limits: dict[str, float], expected: int) -> None:
    [row] = posted({"queries": ["lake"], **limits})["result"]
    assert len(row) == expected


def test_the_other_form_answers_the_same_passages() -> None:
    body = posted({"queries": ["Chur", "lake"], "k": 2}, "/v1/search")
    assert [[found["id"] for found in row] for row in body["results"]] == ids(
        posted({"queries": ["Chur", "lake"], "topk": 2})["result"]
    )
    assert set(body["results"][0][0]) == {"id", "title", "text", "score"}


def test_T_B04_as_many_passages_as_there_are_distinct_and_in_order() -> None:
    [row] = posted({"queries": ["nothing of this"], "topk": 100, "return_scores": True})["result"]
    assert ids([row]) == [["p0", "p1", "p2", "p3", "p4"]]
    assert [item["score"] for item in row] == [0.0] * 5


def test_half_a_surrogate_pair_in_a_passage_is_escaped() -> None:
    application = app(Bm25Retriever([Passage("p", "A", "half \ud800 of it")]))
    [[item]] = posted({"queries": ["half"]}, application=application)["result"]
    assert item["text"] == "half \ud800 of it"


def words(_: Path) -> IndexRetriever:
    return Bm25Retriever(
        Passage(f"p{n}", f"Title {n % 7}", " ".join(f"w{n * k % 11}" for k in range(9)))
        for n in range(60)
    )


def meanings(folder: Path) -> IndexRetriever:
    encoder = str(write_encoder(folder / "encoder"))
    return build_index(CORPUS, folder / "index", DenseOptions(encoder=encoder))


@pytest.mark.parametrize("opened", [words, meanings])
def test_T_B06_alone_in_a_batch_and_among_32_clients(
    opened: Callable[[Path], IndexRetriever], tmp_path: Path
) -> None:
    queries = [f"w{n} w{n * 3 % 11} title {n % 7} {PLACES[n % 11]}" for n in range(64)]

    async def script(client: httpx2.AsyncClient) -> None:
        async def found(part: list[str]) -> list[list[str]]:
            body = {"queries": part, "topk": 5}
            return ids((await client.post("/retrieve", json=body)).json()["result"])

        alone = [(await found([query]))[0] for query in queries]
        assert len({tuple(names) for names in alone}) > 8
        assert await found(queries) == alone
        together = await asyncio.gather(*(found([query]) for query in queries[:32]))
        assert [rows[0] for rows in together] == alone[:32]

    ask(app(opened(tmp_path)), script)
