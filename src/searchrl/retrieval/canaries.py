"""A few queries with the passage each found first when an index was built.

A library, an analyzer or an encoder that has changed since then shows itself there, where a
checksum cannot see it. With vectors, only queries with a clear winner are kept: the last bits of a
score are the machine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from searchrl.data.passages import Passage
from searchrl.retrieval.protocol import Hit, IndexRetriever

Canaries = Sequence[dict[str, Any]]
_COUNT = 5
_LENGTH = 80
_CLEAR = 0.01
"""Share of the first score by which it has to lead."""


def draw_canaries(retriever: IndexRetriever, exact: bool) -> list[dict[str, str]]:
    """Queries from passages spread evenly over the index, with the passage each finds first.

    Args:
        retriever: what is asked.
        exact: scores do not depend on the machine, so that any first passage counts.
    """
    count = len(retriever.corpus)
    rows = range(0, count, max(1, count // _COUNT))[:_COUNT]
    queries = [query_from(retriever.corpus[row]) for row in rows]
    return [
        {"query": query, "top": hits[0].passage.id}
        for query, hits in zip(queries, retriever.find(queries, 2), strict=True)
        if exact or _is_clear(hits)
    ]


def first_wrong(retriever: IndexRetriever, canaries: Canaries) -> str | None:
    """What is wrong with the first canary that finds another passage, or None."""
    for canary in canaries:
        found = retriever.top(canary["query"], 1)[0].passage.id
        if found != canary["top"]:
            return f"{canary['query']!r} now finds {found!r} first, not {canary['top']!r}"
    return None


def query_from(passage: Passage) -> str:
    """The passage's title, or the start of its text, without what a manifest cannot hold."""
    text = " ".join((passage.title.strip() or passage.text).split())[:_LENGTH]
    return "".join(character for character in text if character.isprintable())


def _is_clear(hits: Sequence[Hit]) -> bool:
    return len(hits) < 2 or hits[0].score - hits[1].score > _CLEAR * abs(hits[0].score)
