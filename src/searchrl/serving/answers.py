"""Answers of ``/retrieve`` servers, read strictly: ours, Search-R1's, and their variants.

Those leave out the id, the score, or everything but the contents; an id is made from the contents
then, and a score from the rank. What is no list of passages is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from searchrl.data.passages import Passage, passage_from_row
from searchrl.errors import InputError
from searchrl.retrieval.protocol import Hit
from searchrl.transport.errors import MalformedAnswerError


def read_answer(answer: Mapping[str, Any], queries: int, k: int, server: str) -> list[list[Hit]]:
    """The hits for each query, distinct, by score descending and id, at most ``k``.

    Args:
        answer: the JSON object in its body.
        queries: how many were asked.
        k: how many passages were asked for.
        server: opens error messages.

    Raises:
        MalformedAnswerError: it is anything else.
    """
    rows = answer.get("result")
    if not isinstance(rows, list) or len(rows) != queries:
        raise MalformedAnswerError(f"{server}: the result is not a list of {queries} lists")
    try:
        return [_read_row(row, k) for row in rows]
    except InputError as error:
        raise MalformedAnswerError(f"{server}: {error}") from error


def _read_row(row: Any, k: int) -> list[Hit]:
    if not isinstance(row, list):
        raise InputError("the hits of a query are not a list")
    hits = [_read_hit(item, rank) for rank, item in enumerate(row, start=1)]
    distinct: dict[str, Hit] = {}
    for hit in sorted(hits, key=lambda hit: (-hit.score, hit.passage.id)):
        distinct.setdefault(hit.passage.id, hit)
    return list(distinct.values())[:k]


def _read_hit(item: Any, rank: int) -> Hit:
    scored = isinstance(item, Mapping) and "document" in item
    document = item["document"] if scored else item
    score = item.get("score", 1 / rank) if scored else 1 / rank
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise InputError("a score is not a number")
    return Hit(_read_passage(document), float(score))


def _read_passage(document: Any) -> Passage:
    row = {"contents": document} if isinstance(document, str) else document
    if not isinstance(row, dict):
        raise InputError("a document is neither an object nor a text")
    if "id" not in row and "_id" not in row:
        text = json.dumps([row.get("title"), row.get("contents"), row.get("text")])
        row = row | {"id": hashlib.sha256(text.encode()).hexdigest()[:16]}
    return passage_from_row(row, where="a document")
