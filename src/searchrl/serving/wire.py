"""The requests and answers of the HTTP retriever, and their JSON.

``/retrieve`` speaks Search-R1's form, which the clients of s3, verl and SkyRL share; a document
holds ``contents`` for them, and title and text apart for everybody else. The same types check a
request, write an answer and make the OpenAPI document, so the three cannot differ. Where they
differ from Search-R1's own server: an answer without scores is a list of documents (theirs fails),
a limit out of range is refused (0 means "default" there, -1 is an error 500), and a passage is
never made up for want of hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from searchrl.data.passages import Passage, split_contents
from searchrl.retrieval.protocol import Hit
from searchrl.serving.settings import MAX_PAIRS, MAX_QUERIES, MAX_QUERY, MAX_TOPK

Query = Annotated[str, Meta(max_length=MAX_QUERY)]
Queries = Annotated[list[Query], Meta(max_length=MAX_QUERIES)]
TopK = Annotated[float, Meta(ge=1, le=MAX_TOPK, multiple_of=1)]
"""A whole number; in JSON 3.0 is one, and some clients write it so."""


class RetrieveRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A search in Search-R1's form.

    ``topk_retrieval`` and ``topk_rerank`` come from clients of its reranking server. The smallest
    number given counts.
    """

    queries: Queries | Query
    topk: TopK | None = None
    return_scores: bool = False
    topk_retrieval: TopK | None = None
    topk_rerank: TopK | None = None


class SearchRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A search in this project's form."""

    queries: Queries
    k: TopK | None = None


class GivenDocument(Struct, frozen=True):
    """A passage as a client has it: its contents, or title and text; other fields are let be."""

    id: str | None = None
    contents: str | None = None
    title: str = ""
    text: str | None = None


Candidates = Annotated[list[GivenDocument | str], Meta(max_length=MAX_PAIRS)]


class RerankRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Passages to be ordered anew, in the form of Search-R1's reranking server.

    ``documents`` holds one list a query; a document given as a text is its contents.
    """

    queries: Queries | Query
    documents: Annotated[list[Candidates], Meta(max_length=MAX_QUERIES)]
    rerank_topk: TopK | None = None
    return_scores: bool = False


class Document(Struct, frozen=True):
    """A passage; ``contents`` is the title in quotes, a line end, and the text."""

    id: str
    contents: str
    title: str
    text: str


class ScoredDocument(Struct, frozen=True):
    """A passage found, and how well it fits."""

    document: Document
    score: float


class ScoredAnswer(Struct, frozen=True):
    """A list for each query, best first."""

    result: list[list[ScoredDocument]]


class PlainAnswer(Struct, frozen=True):
    """A list for each query, best first, where no scores are asked for."""

    result: list[list[Document]]


class Found(Struct, frozen=True):
    """A passage found, and how well it fits."""

    id: str
    title: str
    text: str
    score: float


class SearchAnswer(Struct, frozen=True):
    """A list for each query, best first."""

    results: list[list[Found]]


class ServedShard(Struct, frozen=True):
    """Which part of a corpus an index holds; ``set`` is the same for all parts of one."""

    number: int
    of: int
    set: str


class ServedIndex(Struct, frozen=True):
    """What a server searches; ``shard`` is null for an index of a whole corpus."""

    kind: str
    passages: int
    shard: ServedShard | None = None


class Refusal(Struct, frozen=True):
    """Why a request was not answered, in one line."""

    detail: str


class Health(Struct, frozen=True):
    """Whether the server can answer.

    ``progress`` is the share of the index that has been checked, from 0 to 1.
    """

    status: str
    progress: float = 1.0


def limit(request: RetrieveRequest) -> int | None:
    """How many passages a request asks for at most; ``None`` where it leaves that open."""
    given = (request.topk, request.topk_retrieval, request.topk_rerank)
    return min((int(number) for number in given if number is not None), default=None)


def candidates(request: RerankRequest) -> list[list[Passage]]:
    """The passages to be ordered; one without an id is called by its place in its list.

    Raises:
        ValueError: a document has neither contents nor a text.
    """
    return [
        [_given(document, str(place)) for place, document in enumerate(own)]
        for own in request.documents
    ]


def retrieve_answer(hits: Sequence[Sequence[Hit]], scores: bool) -> ScoredAnswer | PlainAnswer:
    """What ``/retrieve`` and ``/rerank`` answer."""
    if scores:
        return ScoredAnswer(
            [[ScoredDocument(_document(hit.passage), hit.score) for hit in row] for row in hits]
        )
    return PlainAnswer([[_document(hit.passage) for hit in row] for row in hits])


def search_answer(hits: Sequence[Sequence[Hit]]) -> SearchAnswer:
    """What ``/v1/search`` answers."""
    return SearchAnswer([[_found(hit) for hit in row] for row in hits])


def schemas(types: Sequence[type[Struct]]) -> dict[str, Any]:
    """JSON Schemas of the types and all they hold, by name, for an OpenAPI document."""
    _, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    return components


def _given(document: GivenDocument | str, place: str) -> Passage:
    if isinstance(document, str):
        return Passage(place, *split_contents(document))
    name = place if document.id is None else document.id
    if document.text is not None:
        return Passage(name, document.title, document.text)
    if document.contents is None:
        raise ValueError("a document has neither contents nor text")
    return Passage(name, *split_contents(document.contents))


def _document(passage: Passage) -> Document:
    return Document(passage.id, passage.contents, passage.title, passage.text)


def _found(hit: Hit) -> Found:
    return Found(hit.passage.id, hit.passage.title, hit.passage.text, hit.score)
