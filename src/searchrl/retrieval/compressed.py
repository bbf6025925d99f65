"""Vectors that are searched without reading them all: 4-bit codes or a graph, over faiss.

Either only proposes candidates; scores and order come from the vectors themselves. A list that
comes back short is completed by an exact search, so there is no id -1 and no padding.

Codes are product quantisation, 4 bits for each 2 numbers: a sixteenth of float32. With a hundred
candidates rescored, recall of the exact ten is above 0.99 on real encoders' vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval.vectors import Vectors

FILES = {"pq": "codes.faiss", "hnsw": "graph.faiss"}
_TYPES = {"pq": (b"IPfs", "IndexPQFastScan"), "hnsw": (b"IHNf", "IndexHNSWFlat")}
"""The first bytes that a file of each kind must have, before faiss reads it, and its class."""
CODE_VECTORS = 1_000
"""Fewer vectors than this are not worth codes, and too few to train them."""
_TRAINING_VECTORS = 65_536
_NEIGHBOURS = 32
_BUILD_DEPTH = 200
_SPARE = 10
_LEAST = 128
"""Candidates: ``_SPARE`` times k, but not fewer than this."""


class Compressed:
    """An opened faiss index that proposes candidates.

    Args:
        kind: ``pq`` or ``hnsw``.
        engine: the faiss index.
    """

    def __init__(self, kind: str, engine: Any) -> None:
        self._kind = kind
        self._engine = engine

    def propose(self, queries_QD: npt.NDArray[np.float32], k: int) -> list[npt.NDArray[np.intp]]:
        """Distinct rows that are likely to hold the ``k`` nearest of each query."""
        faiss = _faiss()
        count = min(max(_SPARE * k, _LEAST), self._engine.ntotal)
        parameters = None
        if self._kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=count)
        _, found_QM = self._engine.search(queries_QD, count, params=parameters)
        return [np.unique(found[found >= 0]) for found in found_QM]


def write_compressed(vectors: Vectors, kind: str, directory: Path) -> None:
    """Build the codes or the graph of all vectors into ``directory``.

    Raises:
        InputError: faiss is not installed, or there are too few vectors or an odd dimension.
    """
    faiss = _faiss()
    engine = _graph(faiss, vectors) if kind == "hnsw" else _codes(faiss, vectors)
    for _, block in vectors.blocks():
        engine.add(np.ascontiguousarray(block))
    faiss.write_index(engine, str(directory / FILES[kind]))


def open_compressed(vectors: Vectors, kind: str, directory: Path) -> Compressed:
    """Read what ``write_compressed`` wrote.

    Raises:
        InputError: faiss is not installed.
        IntegrityError: the file is missing, of another kind, or does not belong to the vectors.
    """
    faiss, file = _faiss(), directory / FILES[kind]
    start, name = _TYPES[kind]
    if not file.is_file():
        raise IntegrityError(f"{file}: missing; build the index again")
    with file.open("rb") as handle:
        if handle.read(len(start)) != start:
            raise IntegrityError(f"{file}: no {name} of faiss; build the index again")
    try:
        faiss.set_deserialization_vector_byte_limit(file.stat().st_size)
        engine = faiss.read_index(str(file))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise IntegrityError(f"{file}: faiss cannot read it: {reason}") from error
    if type(engine).__name__ != name or (engine.ntotal, engine.d) != (
        len(vectors),
        vectors.dimension,
    ):
        raise IntegrityError(f"{file}: does not belong to these vectors; build the index again")
    return Compressed(kind, engine)


def _codes(faiss: Any, vectors: Vectors) -> Any:
    if len(vectors) < CODE_VECTORS:
        raise InputError(
            f"{len(vectors)} vectors are too few for pq; it needs {CODE_VECTORS}: "
            "search them exactly, with compression none"
        )
    if vectors.dimension % 2:
        raise InputError(f"pq needs an even dimension, not {vectors.dimension}; use hnsw or none")
    description = f"PQ{vectors.dimension // 2}x4fs"
    engine = faiss.index_factory(vectors.dimension, description, faiss.METRIC_INNER_PRODUCT)
    count = min(len(vectors), _TRAINING_VECTORS)
    # Evenly spread, so that a corpus sorted by topic trains as well as a shuffled one.
    rows = np.linspace(0, len(vectors) - 1, count).astype(np.intp)
    engine.train(vectors.take(rows))
    return engine


def _graph(faiss: Any, vectors: Vectors) -> Any:
    engine = faiss.IndexHNSWFlat(vectors.dimension, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    engine.hnsw.efConstruction = _BUILD_DEPTH
    return engine


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "compression pq and hnsw need faiss: pip install 'searchrl[faiss]', "
            "or set compression none"
        ) from error
    return faiss
