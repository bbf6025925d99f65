"""What a recipe may search: an index of this process, a server, or the web."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt

from searchrl.options import Options
from searchrl.retrieval.options import Bm25Options, DenseOptions, HybridOptions
from searchrl.retrieval.web.options import WebOptions


class HttpRetrieverOptions(Options):
    """A server that speaks Search-R1's ``/retrieve``, as ``searchrl serve`` does."""

    kind: Literal["http"]
    url: str = Field(pattern=r"^https?://[^/\s]+")
    """The address of the operation, as in ``http://127.0.0.1:8000/retrieve``."""
    key_variable: str | None = None
    """Environment variable that holds the API key."""
    seconds: float = Field(60.0, gt=0)
    """How long one search may take, its repeats included; a server that has not answered yet is
    waited for as long."""
    outage: NonNegativeFloat = 600.0
    """Seconds that the work waits for a server that has gone down."""
    cache: NonNegativeInt = 10_000
    """Lists of hits that are kept in memory."""


def _kind_or_bm25(value: Any) -> Any:
    """A retriever that names no kind is BM25."""
    return {"kind": "bm25", **value} if isinstance(value, dict) else value


RetrieverOptions = Annotated[
    Annotated[
        Bm25Options | DenseOptions | HybridOptions | HttpRetrieverOptions | WebOptions,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_kind_or_bm25),
]
