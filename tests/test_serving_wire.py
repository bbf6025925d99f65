"""The exchanges of the clients that this server has to please, byte by byte.

The requests are what Python's ``requests`` sends for each of them; the readers below are what each
does with the answer, written anew.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from searchrl.data.passages import Passage
from searchrl.retrieval.protocol import Hit
from tests.serving_fixtures import app, ask

PASSAGES = [
    Passage("15", "Ed Wood (film)", "A film by Tim Burton.\nIt is in black and white."),
    Passage("7", "Café “Ou”", 'He said "no"\tand left.'),
]
SCORES = (2.5, 0.30000001192092896)


class Fixed:
    """Finds the two passages for every query."""

    async def search(self, queries: Any, k: int) -> list[list[Hit]]:
        await asyncio.sleep(0)
        return [[Hit(p, s) for p, s in zip(PASSAGES, SCORES, strict=True)][:k] for _ in queries]


DOCUMENTS = (
    '{"id":"15",'
    '"contents":"\\"Ed Wood (film)\\"\\nA film by Tim Burton.\\nIt is in black and white.",'
    '"title":"Ed Wood (film)","text":"A film by Tim Burton.\\nIt is in black and white."}',
    '{"id":"7","contents":"\\"Café “Ou”\\"\\nHe said \\"no\\"\\tand left.",'
    '"title":"Café “Ou”","text":"He said \\"no\\"\\tand left."}',
)
SCORED = [
    f'{{"document":{document},"score":{score}}}'
    for document, score in zip(DOCUMENTS, ("2.5", "0.30000001192092896"), strict=True)
]

EXCHANGES = {
    "Search-R1 and s3 in training": (
        '{"queries": ["who made it", "where"], "topk": 3, "return_scores": true}',
        f'{{"result":[[{",".join(SCORED)}],[{",".join(SCORED)}]]}}',
    ),
    "verl and SkyRL, one query": (
        '{"queries": ["who made it"], "topk": 1, "return_scores": true}',
        f'{{"result":[[{SCORED[0]}]]}}',
    ),
    "Search-R1 when all episodes of a batch are over": (
        '{"queries": [], "topk": 3, "return_scores": true}',
        '{"result":[]}',
    ),
    "without scores": (
        '{"queries": ["a", "b"], "topk": 1, "return_scores": false}',
        f'{{"result":[[{DOCUMENTS[0]}],[{DOCUMENTS[0]}]]}}',
    ),
    "Search-R1's example for the reranking server": (
        '{"queries": ["a"], "topk_retrieval": 10, "topk_rerank": 1, "return_scores": true}',
        f'{{"result":[[{SCORED[0]}]]}}',
    ),
}


def exchange(body: str) -> bytes:
    async def script(client: httpx2.AsyncClient) -> bytes:
        headers = {"content-type": "application/json", "accept": "*/*"}
        response = await client.post("/retrieve", content=body.encode(), headers=headers)
        assert response.status_code == 200
        return response.content

    return bytes(ask(app(Fixed()), script))


@pytest.mark.parametrize("name", EXCHANGES)
def test_T_B07_the_answer_is_this_to_the_byte(name: str) -> None:
    request, answer = EXCHANGES[name]
    assert exchange(request).decode() == answer


def search_r1(row: list[Any]) -> str:
    """``Doc 1(Title: "..") text``, the title with its quotes."""
    text = ""
    for number, item in enumerate(row, start=1):
        lines = item["document"]["contents"].split("\n")
        text += f"Doc {number}(Title: {lines[0]}) {chr(10).join(lines[1:])}\n"
    return text


def verl(row: list[Any]) -> str:
    """``Doc 1 (Title: "..")``, a line end, the text."""
    text = ""
    for number, item in enumerate(row, start=1):
        title, *rest = item["document"]["contents"].split("\n")
        text += f"Doc {number} (Title: {title})\n{chr(10).join(rest)}\n\n"
    return text.strip()


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (
            search_r1,
            'Doc 1(Title: "Ed Wood (film)") A film by Tim Burton.\nIt is in black and white.\n'
            'Doc 2(Title: "Café “Ou”") He said "no"\tand left.\n',
        ),
        (
            verl,
            'Doc 1 (Title: "Ed Wood (film)")\nA film by Tim Burton.\nIt is in black and white.\n\n'
            'Doc 2 (Title: "Café “Ou”")\nHe said "no"\tand left.',
        ),
    ],
)
def test_T_B07_their_clients_read_it(read: Callable[[list[Any]], str], expected: str) -> None:
    request, _ = EXCHANGES["Search-R1 and s3 in training"]
    assert [read(row) for row in json.loads(exchange(request))["result"]] == [expected] * 2
