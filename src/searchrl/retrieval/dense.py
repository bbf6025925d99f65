"""Dense retrieval: the passages whose vectors have the highest inner product with the query's.

Vectors lie memory-mapped on disk and give every score that is returned. What proposes candidates
may be a scan of all of them, and then the answer is exact, or codes or a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchrl.data.corpus import Corpus
from searchrl.errors import IntegrityError
from searchrl.retrieval.compressed import Compressed, open_compressed
from searchrl.retrieval.encoder import Encoder
from searchrl.retrieval.nearest import Float32Scan, nearest, open_scan, rescored
from searchrl.retrieval.options import VectorOptions
from searchrl.retrieval.protocol import IndexRetriever, Ranking
from searchrl.retrieval.vectors import Vectors

_SCAN_BYTES = 2
_QUERIES = 256
"""Queries that are scanned at once."""


class DenseRetriever(IndexRetriever):
    """Answers queries over a corpus with its vectors.

    Args:
        corpus: the passages; row n has vector n.
        encoder: of queries.
        directory: what ``write_vectors``, and ``write_compressed`` if at all, filled.
        compression: ``none``, ``pq`` or ``hnsw``.
        device: where a scan runs, and keeps a copy of the vectors where that is faster; without
            one they are scanned as they lie on disk.

    Raises:
        IntegrityError: the files are damaged, or do not belong to the corpus or the encoder.
    """

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder,
        directory: Path,
        compression: str = "none",
        device: str | None = "cpu",
    ) -> None:
        self.corpus = corpus
        self.vectors = Vectors(directory)
        self._encoder = encoder
        if len(self.vectors) != len(corpus):
            raise IntegrityError(f"{directory}: vectors and passages differ in number")
        if self.vectors.dimension != encoder.settings.dimension:
            raise IntegrityError(
                f"{directory}: vectors have {self.vectors.dimension} dimensions, and those of "
                f"{encoder.settings.model} {encoder.settings.dimension}"
            )
        self._compressed: Compressed | None = None
        if compression != "none":
            self._compressed = open_compressed(self.vectors, compression, directory)
            # Only for queries whose list comes back short, so nothing is kept in memory for it.
            device = None
        self._scan = (
            Float32Scan(self.vectors) if device is None else open_scan(self.vectors, device)
        )

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """See ``IndexRetriever.rank``."""
        # Each query is encoded once: in another batch its vector could differ in the last bits.
        distinct = list(dict.fromkeys(queries))
        vectors_QD = self.encode(distinct)
        rankings: dict[str, Ranking] = {}
        for start in range(0, len(distinct), _QUERIES):
            part = slice(start, start + _QUERIES)
            found = self.rank_vectors(vectors_QD[part], k)
            rankings.update(zip(distinct[part], found, strict=True))
        return [rankings[query] for query in queries]

    def encode(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors of queries, shape ``(len(queries), dimension)``."""
        return self._encoder.encode(queries)

    def rank_vectors(self, queries_QD: npt.NDArray[np.float32], k: int) -> list[Ranking]:
        """The answers to queries that are encoded already."""
        if self._compressed is None:
            return nearest(queries_QD, self.vectors, self._scan, self.corpus.ranks, k)
        proposed = self._compressed.propose(queries_QD, k)
        return [self._settle(*pair, k) for pair in zip(queries_QD, proposed, strict=True)]

    def _settle(
        self, query_D: npt.NDArray[np.float32], rows: npt.NDArray[np.intp], k: int
    ) -> Ranking:
        """The best of what was proposed; where that is too little, the best of all."""
        if len(rows) >= min(k, len(self.corpus)):
            return rescored(query_D, rows, self.vectors, self.corpus.ranks, k)
        (ranking,) = nearest(query_D[None], self.vectors, self._scan, self.corpus.ranks, k)
        return ranking


def chosen_compression(options: VectorOptions, count: int, dimension: int) -> str:
    """What ``options.compression`` means for so many vectors."""
    if options.compression != "auto":
        return options.compression
    fits = count * dimension * _SCAN_BYTES <= options.memory_gb * 1e9
    return "none" if fits else "pq"
