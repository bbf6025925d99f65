"""Engines that search by vectors, ours and others', over drawn vectors of a text encoder's shape.

Vectors scatter around a few thousand centres in a space of fewer dimensions than they have, as
those of real encoders do; the query for a passage is its vector, shaken. They are drawn a shard at
a time and lie on disk as our own shards, which every engine reads; what an engine keeps besides is
its own. One thread, one query at a time or a batch. A missing package shows as ``ImportError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchrl.data.corpus import MemoryCorpus
from searchrl.data.passages import Passage
from searchrl.retrieval.compressed import write_compressed
from searchrl.retrieval.dense import DenseRetriever
from searchrl.retrieval.encoder import EncoderSettings
from searchrl.retrieval.vectors import Vectors, write_vectors

DIMENSION = 384
_CENTRES, _INNER = 4_096, 96
_SPREAD, _SHAKE = 0.5, 0.3
_NEIGHBOURS, _BUILD_DEPTH, _SEARCH_DEPTH = 32, 200, 128
_NO_SETTINGS = EncoderSettings("drawn", "", "mean", True, 256, DIMENSION, "")
Queries = npt.NDArray[np.float32]
Ask = Callable[[Queries, int], npt.NDArray[np.int64]]
"""Finds the rows for each query, shape ``(queries, k)``."""


class DrawnVectors:
    """Draws rows of the matrix, and queries for them."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        random = np.random.default_rng([seed, 0])
        self._centres = random.standard_normal((_CENTRES, _INNER), np.float32)
        self._outward = random.standard_normal((_INNER, DIMENSION), np.float32)

    def rows(self, start: int, stop: int) -> Queries:
        """Vectors of length 1; ``start`` is a multiple of the size of a shard."""
        random = np.random.default_rng([self._seed, 1, start])
        inner = self._centres[random.integers(0, _CENTRES, stop - start)]
        inner = inner + _SPREAD * random.standard_normal(inner.shape, np.float32)
        return _unit(inner @ self._outward)

    def queries(self, vectors: Vectors, count: int) -> Queries:
        """Shaken vectors of rows that are spread over all of them."""
        random = np.random.default_rng([self._seed, 2])
        asked = vectors.take(random.integers(0, len(vectors), count).astype(np.intp))
        noise = _unit(random.standard_normal(asked.shape, np.float32))
        return _unit(asked + _SHAKE * noise)


def write_drawn(size: int, folder: Path) -> Vectors:
    """The vectors on disk, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vectors(DrawnVectors().rows, size, folder, "float32")
    return Vectors(folder)


def build_ours(kind: str) -> Callable[[Path, Path], None]:
    """Our index, whose vectors lie on disk already."""

    def build(vectors: Path, folder: Path) -> None:
        if kind != "none":
            write_compressed(Vectors(vectors), kind, folder)

    return build


def open_ours(kind: str) -> Callable[[Path, Path], Ask]:
    """Our index, vectors mapped."""

    def opened(vectors: Path, folder: Path) -> Ask:
        for shard in vectors.glob("vectors-*.npy"):
            link = folder / shard.name
            if not link.exists():
                link.symlink_to(shard.resolve())
        count = len(Vectors(vectors))
        corpus = MemoryCorpus(Passage(f"{row:09}", "", "") for row in range(count))
        retriever = DenseRetriever(corpus, _NoEncoder(), folder, kind)  # type: ignore[arg-type]

        def ask(queries: Queries, k: int) -> npt.NDArray[np.int64]:
            return np.stack([each.rows for each in retriever.rank_vectors(queries, k)])

        return ask

    return opened


class _NoEncoder:
    """Stands where the encoder would: queries come as vectors."""

    settings = replace(_NO_SETTINGS)


def build_faiss(vectors: Path, folder: Path) -> None:
    """FAISS's flat index."""
    import faiss

    index = faiss.IndexFlatIP(DIMENSION)
    for block in _blocks(vectors):
        index.add(block)
    faiss.write_index(index, str(folder / "index"))


def open_faiss(vectors: Path, folder: Path) -> Ask:
    """FAISS's flat index in memory, its threshold for batches as it was before 1.14.2."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 3 * DIMENSION
    index = faiss.read_index(str(folder / "index"))

    def ask(queries: Queries, k: int) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = index.search(queries, k)[1]
        return found

    return ask


def build_usearch(vectors: Path, folder: Path) -> None:
    """Usearch's graph."""
    index = _usearch()
    start = 0
    for block in _blocks(vectors):
        index.add(np.arange(start, start + len(block)), block, threads=1)
        start += len(block)
    index.save(str(folder / "index"))


def open_usearch(vectors: Path, folder: Path) -> Ask:
    """Usearch's graph, mapped."""
    index = _usearch()
    index.view(str(folder / "index"))

    def ask(queries: Queries, k: int) -> npt.NDArray[np.int64]:
        keys = np.atleast_2d(index.search(queries, k, threads=1).keys)
        return keys.astype(np.int64)

    return ask


def _usearch() -> Any:
    from usearch.index import Index

    return Index(
        ndim=DIMENSION, metric="ip", dtype="f32", connectivity=_NEIGHBOURS,
        expansion_add=_BUILD_DEPTH, expansion_search=_SEARCH_DEPTH,
    )  # fmt: skip


def build_hnswlib(vectors: Path, folder: Path) -> None:
    """Hnswlib's graph."""
    index = _hnswlib()
    count = len(Vectors(vectors))
    index.init_index(max_elements=count, ef_construction=_BUILD_DEPTH, M=_NEIGHBOURS)
    for block in _blocks(vectors):
        index.add_items(block, num_threads=1)
    index.save_index(str(folder / "index"))


def open_hnswlib(vectors: Path, folder: Path) -> Ask:
    """Hnswlib's graph in memory."""
    index = _hnswlib()
    index.load_index(str(folder / "index"))
    index.set_ef(_SEARCH_DEPTH)

    def ask(queries: Queries, k: int) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = index.knn_query(queries, k, num_threads=1)[0]
        return found.astype(np.int64)

    return ask


def _hnswlib() -> Any:
    import hnswlib

    return hnswlib.Index(space="ip", dim=DIMENSION)


def _blocks(vectors: Path) -> Iterator[Queries]:
    return (np.ascontiguousarray(block) for _, block in Vectors(vectors).blocks())


def _unit(vectors: Queries) -> Queries:
    scaled: Queries = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


ENGINES: dict[str, tuple[Callable[[Path, Path], None], Callable[[Path, Path], Ask]]] = {
    "ours": (build_ours("none"), open_ours("none")),
    "ours, pq": (build_ours("pq"), open_ours("pq")),
    "ours, hnsw": (build_ours("hnsw"), open_ours("hnsw")),
    "faiss": (build_faiss, open_faiss),
    "usearch": (build_usearch, open_usearch),
    "hnswlib": (build_hnswlib, open_hnswlib),
}
"""How each is built and opened: from the shards of all vectors, in a folder of its own."""
