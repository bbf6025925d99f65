"""What a recipe or a command can set about retrieval.

Settings that decide what an index holds are kept in its manifest and compared when it is opened;
those in ``RUNTIME`` only say where and how fast it is computed, and may change any time.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from searchrl.options import Options

Pooling = Literal["mean", "cls", "last"]
Compression = Literal["auto", "none", "pq", "hnsw"]
NumberForm = Literal["float32", "bfloat16", "float16"]
AnyForm = Literal["auto", NumberForm]
"""A number form, or the choice of one: see ``encoder.Runtime``."""

RUNTIME = frozenset({"device", "dtype", "batch_size"})
"""Options that do not change what an index is."""


class IndexOptions(Options):
    """What all kinds of index share."""

    kind: str

    def identity(self) -> dict[str, Any]:
        """The options that decide what an index holds."""
        return self.model_dump(exclude=set(RUNTIME))


class WordOptions(IndexOptions):
    """The word part of an index."""

    k1: float = Field(0.9, ge=0)
    """BM25: how slowly repeats of a word saturate."""
    b: float = Field(0.4, ge=0, le=1)
    """BM25: weight of the passage's length."""


class VectorOptions(IndexOptions):
    """The vector part of an index."""

    encoder: str
    """The model that encodes queries, and passages too unless those have their own."""
    passage_encoder: str | None = None
    """The model that encodes passages, where it is another one, as in DPR."""
    pooling: Pooling | None = None
    """How token vectors become one: their mean, the first or the last; the model's own way when
    left out."""
    normalise: bool | None = None
    """Scale vectors to length 1; the model's own way when left out."""
    max_length: PositiveInt | None = None
    """Tokens after which a text is cut; the model's own limit when left out."""
    query_prefix: str | None = None
    """Text put before every query; the model's own when left out."""
    passage_prefix: str | None = None
    """Text put before every passage; the model's own when left out."""
    vector_dtype: Literal["float32", "float16"] = "float32"
    """Number form of the vectors on disk."""
    compression: Compression = "auto"
    """How vectors are searched: exactly (``none``), by 4-bit codes (``pq``) or a graph (``hnsw``),
    both rescored exactly; ``auto`` is exact up to ``memory_gb`` and ``pq`` above."""
    memory_gb: PositiveFloat = 16.0
    """Largest matrix of 16-bit vectors that ``auto`` searches exactly."""
    device: str = "cpu"
    """Where vectors are computed and searched, as in ``cpu`` or ``cuda:0``."""
    dtype: NumberForm = "float32"
    """Number form of the encoder's weights."""
    batch_size: PositiveInt = 64
    """Texts that are encoded at once."""


class Bm25Options(WordOptions):
    """Words: BM25 with Lucene's analysis and scores."""

    kind: Literal["bm25"] = "bm25"


class DenseOptions(VectorOptions):
    """Meanings: the nearest vectors of a text encoder."""

    kind: Literal["dense"] = "dense"


class HybridOptions(WordOptions, VectorOptions):
    """Both, fused by reciprocal ranks."""

    kind: Literal["hybrid"] = "hybrid"
    fusion_depth: PositiveInt = 100
    """Passages that each part puts into the fusion."""
    fusion_constant: PositiveFloat = 60.0
    """Reciprocal rank fusion: how little the first places stand out."""


class RerankOptions(Options):
    """A cross-encoder that reads query and passage together and orders the first passages anew."""

    model: str
    """A path or a hub name."""
    depth: PositiveInt = 20
    """Passages that are read a query; never fewer than are asked for."""
    max_length: PositiveInt | None = None
    """Tokens of query and passage together; the model's own limit when left out."""
    device: str = "cpu"
    """Where the model runs, as in ``cpu`` or ``cuda:0``."""
    dtype: NumberForm = "float32"
    """Number form of its weights."""
    batch_size: PositiveInt = 32
    """Pairs that are read at once."""


AnyIndexOptions = Annotated[Bm25Options | DenseOptions | HybridOptions, Field(discriminator="kind")]
KINDS = ("bm25", "dense", "hybrid")
