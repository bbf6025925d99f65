"""A retriever server written in the way Search-R1's is; the words are ours, the structure theirs.

FastAPI with a plain ``def`` handler, so that requests run in its thread pool, each searched on its
own, behind a progress bar; documents come out of ``datasets`` row by row, and FastAPI turns the
answer, whose type it is not told, into JSON. ``lean`` leaves out the progress bar and tells FastAPI
the type, which it then writes faster: what could be mended there without changing the structure.
"""

from __future__ import annotations

from typing import Any

from benchmarks.retrieval.searches import TOPK, Engine, Found

_BATCH = 512


def serve(engine: Engine, port: int, lean: bool) -> None:
    """Serve until a signal ends it."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Query(BaseModel):
        queries: list[str]
        topk: int | None = None
        return_scores: bool = False

    def retrieve(request):  # type: ignore[no-untyped-def]
        found = _search(engine, request.queries, request.topk or TOPK, lean)
        return {"result": _paired(found) if request.return_scores else found[0]}

    # Names of this function are not the module's, so FastAPI could not resolve them as text.
    retrieve.__annotations__ = {"request": Query} | ({"return": dict[str, Any]} if lean else {})
    app = FastAPI()
    app.post("/retrieve")(retrieve)
    app.get("/health/ready")(_ready)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def _search(engine: Engine, queries: list[str], k: int, lean: bool) -> Found:
    documents: list[list[dict[str, Any]]] = []
    scores: list[list[float]] = []
    starts: Any = range(0, len(queries), _BATCH)
    for start in starts if lean else _watched(starts):
        found, values = engine.batch_search(queries[start : start + _BATCH], k)
        documents += found
        scores += values
    return documents, scores


def _watched(steps: range) -> Any:
    from tqdm import tqdm

    return tqdm(steps, desc="searching: ")


def _paired(found: Found) -> list[list[dict[str, Any]]]:
    return [
        [
            {"document": document, "score": score}
            for document, score in zip(documents, scores, strict=True)
        ]
        for documents, scores in zip(*found, strict=True)
    ]


def _ready() -> dict[str, str]:
    return {"status": "ready"}
