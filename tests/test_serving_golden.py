"""Exchanges of s3's and verl's search clients with this server, kept as files, byte by byte.

A file in ``golden/retrieve`` holds what a client passes to Python's ``requests``, the bytes that
makes, the bytes of the answer, and the text the client makes of it; the readers below do what each
client does with an answer, written anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.serving_fixtures import app, ask
from tests.test_serving_wire import Fixed

FOLDER = Path(__file__).parent / "golden" / "retrieve"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))
Row = list[dict[str, Any]]


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def from_contents(item: dict[str, Any]) -> tuple[str, str]:
    title, *rest = item["document"]["contents"].split("\n")
    return title, "\n".join(rest)


def from_fields(item: dict[str, Any]) -> tuple[str, str]:
    return item["document"]["title"], item["document"]["text"]


def s3(parts: Callable[[dict[str, Any]], tuple[str, str]], gap: str) -> Callable[[Any], list[str]]:
    """A line a document; in a rollout nothing stands between the number and the bracket."""

    def line(number: int, item: dict[str, Any]) -> str:
        title, text = parts(item)
        return f"Doc {number}{gap}(Title: {title}) {text}\n"

    def read(result: Sequence[Row]) -> list[str]:
        return ["".join(line(n, item) for n, item in enumerate(row, 1)) for row in result]

    return read


def verl(result: Sequence[Row]) -> list[str]:
    """One text for all queries of a tool call, with a rule between them."""
    texts = []
    for row in result:
        parts = [from_contents(item) for item in row]
        blocks = [f"Doc {n} (Title: {title})\n{text}" for n, (title, text) in enumerate(parts, 1)]
        texts.append("\n\n".join(blocks))
    return ["\n---\n".join(texts)]


READERS: dict[str, Callable[[Any], list[str]]] = {
    "s3-rollout": s3(from_contents, ""),
    "s3-rollout-own-corpus": s3(from_fields, ""),
    "s3-first-documents": s3(from_contents, " "),
    "s3-first-documents-own-corpus": s3(from_fields, " "),
    "verl-search-tool": verl,
}


def test_every_client_has_its_file() -> None:
    assert sorted(READERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_T_B07_the_request_is_what_the_client_sends(name: str) -> None:
    requests = pytest.importorskip("requests")
    exchange = golden(name)
    sent = requests.Request("POST", "http://127.0.0.1:8000/retrieve", json=exchange["payload"])
    assert sent.prepare().body.decode() == exchange["request"]


@pytest.mark.parametrize("name", NAMES)
def test_T_B07_the_answer_is_the_golden_one_and_the_client_reads_it(name: str) -> None:
    exchange = golden(name)

    async def script(client: httpx2.AsyncClient) -> httpx2.Response:
        body, headers = exchange["request"].encode(), exchange["headers"]
        return await client.post("/retrieve", content=body, headers=headers)

    response = ask(app(Fixed()), script)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.content.decode() == exchange["response"]
    # Both clients go by the place of a list to tell whose it is.
    result = response.json()["result"]
    assert len(result) == len(exchange["payload"]["queries"])
    assert READERS[name](result) == exchange["read"]
