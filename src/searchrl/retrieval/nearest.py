"""Exact nearest vectors by inner product, found with cheap arithmetic and proved with exact one.

A scan multiplies all vectors in few bits (bfloat16 where the hardware is made for it) and proposes
candidates; their scores are computed again in double precision. How far the cheap score can be off
is bounded, so it is known for each query whether a vector that was not proposed could belong to the
answer; if it could, more are proposed, in the end all. What comes out therefore does not depend on
the arithmetic of the scan, on the batch, or on the machine.

Differs from the peers, who return the 16-bit scores of one batch product.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from searchrl.retrieval.protocol import Ranking
from searchrl.retrieval.ranking import Ranks, best_rows, in_order
from searchrl.retrieval.vectors import Vectors

if TYPE_CHECKING:
    import torch

_SPARE = 4
_LEAST = 64
"""Candidates at first: ``_SPARE`` times k, but not fewer than this."""
_GROWTH = 8
_CELLS = 1 << 24
"""Scores held at once."""
_GROUP = 16
"""Scores of which only the best is looked at first."""
_LEAST_QUERIES = 4
_UNIT_BFLOAT16 = 2.0**-8
_UNIT_FLOAT32 = 2.0**-24
_Queries = npt.NDArray[np.float32]


class Scan(Protocol):
    """Cheap scores of all vectors."""

    def chunks(self, queries_QD: _Queries) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield ``(first row, scores of shape (C, Q))`` until all rows are scored."""
        ...

    def slack(self, query_D: _Queries) -> float:
        """How much a score of this query can be off, at most."""
        ...


class Bfloat16Scan:
    """All vectors in one bfloat16 matrix, in the memory of a device: 2 bytes a number.

    Args:
        vectors: what is copied.
        device: where to.
    """

    def __init__(self, vectors: Vectors, device: str) -> None:
        import torch

        # Accelerators may round partial sums too, which is as much again each time.
        self._unit = _UNIT_BFLOAT16 * (1 if device == "cpu" else 4)
        shape = (len(vectors), vectors.dimension)
        self._matrix_ND = torch.empty(shape, dtype=torch.bfloat16, device=device)
        self._longest = self._worst = 0.0
        for start, block in vectors.blocks():
            exact = torch.from_numpy(np.array(block, np.float32))
            rounded = exact.to(torch.bfloat16)
            self._matrix_ND[start : start + len(block)] = rounded
            self._longest = max(self._longest, float(exact.norm(dim=1).max()))
            self._worst = max(self._worst, float((exact - rounded.float()).norm(dim=1).max()))

    def chunks(self, queries_QD: _Queries) -> Iterator[tuple[int, torch.Tensor]]:
        """See ``Scan.chunks``."""
        import torch

        count = len(queries_QD)
        queries = torch.from_numpy(queries_QD).to(self._matrix_ND.device, torch.bfloat16)
        # A lone vector would go to another kernel, which reads the matrix at half the speed.
        queries = torch.nn.functional.pad(queries, (0, 0, 0, max(0, _LEAST_QUERIES - count)))
        size = max(1, _CELLS // len(queries))
        for start in range(0, len(self._matrix_ND), size):
            yield start, (self._matrix_ND[start : start + size] @ queries.T)[:, :count]

    def slack(self, query_D: _Queries) -> float:
        """The rounding of the query, of the vectors, of the sum's terms, and of the score."""
        import torch

        exact = torch.from_numpy(query_D)
        length, lost = float(exact.norm()), float((exact - exact.bfloat16().float()).norm())
        products = lost * self._longest + (length + lost) * self._worst
        largest = (length + lost) * (self._longest + self._worst)
        return products + largest * (self._unit + len(query_D) * _UNIT_FLOAT32)


class Float32Scan:
    """The vectors as they lie on disk, multiplied in float32: no memory, any processor."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    @cached_property
    def _longest(self) -> float:
        """Length of the longest vector; read when first needed, for that reads them all."""
        return max(
            float(np.linalg.norm(block, axis=1).max()) for _, block in self._vectors.blocks()
        )

    def chunks(self, queries_QD: _Queries) -> Iterator[tuple[int, torch.Tensor]]:
        """See ``Scan.chunks``."""
        import torch

        for start, block in self._vectors.blocks():
            yield start, torch.from_numpy(block @ queries_QD.T)

    def slack(self, query_D: _Queries) -> float:
        """Each of the D products and sums rounds once."""
        length = float(np.linalg.norm(query_D))
        return 2 * len(query_D) * _UNIT_FLOAT32 * length * self._longest


def open_scan(vectors: Vectors, device: str) -> Scan:
    """The faster scan: bfloat16 pays on accelerators and on processors with tiles for it (AMX)."""
    import torch

    if device != "cpu" or torch.cpu._is_amx_tile_supported():
        return Bfloat16Scan(vectors, device)
    return Float32Scan(vectors)


def nearest(
    queries_QD: _Queries, vectors: Vectors, scan: Scan, ranks: Ranks, k: int
) -> list[Ranking]:
    """The ``min(k, N)`` rows of the highest exact scores, ties by rank, for every query."""
    answers: dict[int, Ranking] = {}
    waiting = list(range(len(queries_QD)))
    count = max(_SPARE * k, _LEAST)
    while waiting and count < len(vectors):
        rows_QM, scores_QM = _proposed(scan, queries_QD[waiting], count)
        undecided = []
        for query, rows, scores in zip(waiting, rows_QM, scores_QM, strict=True):
            ranking = rescored(queries_QD[query], rows, vectors, ranks, k)
            limit = float(scores[-1]) + scan.slack(queries_QD[query])
            if ranking.scores[-1] > limit:
                answers[query] = ranking
            else:
                undecided.append(query)
        waiting, count = undecided, count * _GROWTH
    for query in waiting:
        answers[query] = _exhaustive(queries_QD[query], vectors, ranks, k)
    return [answers[query] for query in range(len(queries_QD))]


def rescored(
    query_D: _Queries, rows: npt.NDArray[np.intp], vectors: Vectors, ranks: Ranks, k: int
) -> Ranking:
    """The ``k`` best of the proposed rows by their exact scores."""
    scores = exact_scores(vectors.take(rows), query_D)
    order = in_order(np.arange(len(rows)), scores, ranks[rows])[:k]
    return Ranking(rows[order], scores[order])


def exact_scores(vectors_MD: npt.NDArray[np.float32], query_D: _Queries) -> npt.NDArray[np.float32]:
    """Inner products summed in double precision, so that equal vectors score equally anywhere."""
    exact_MD, exact_D = vectors_MD.astype(np.float64), query_D.astype(np.float64)
    scores: npt.NDArray[np.float32] = np.einsum("md,d->m", exact_MD, exact_D).astype(np.float32)
    return scores


def _exhaustive(query_D: _Queries, vectors: Vectors, ranks: Ranks, k: int) -> Ranking:
    scores = np.concatenate([exact_scores(block, query_D) for _, block in vectors.blocks()])
    rows = best_rows(scores, ranks, k)
    return Ranking(rows, scores[rows])


def _proposed(
    scan: Scan, queries_QD: _Queries, count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Rows and cheap scores of the ``count`` best by the scan, best first, shape ``(Q, count)``."""
    import torch

    best_QM = torch.empty(len(queries_QD), 0)
    rows_QM = torch.empty(len(queries_QD), 0, dtype=torch.int64)
    for start, scores_CQ in scan.chunks(queries_QD):
        values, rows = _best_of(scores_CQ, count)
        best_QM = torch.cat([best_QM, values.cpu()], dim=1)
        rows_QM = torch.cat([rows_QM, rows.cpu() + start], dim=1)
        kept = best_QM.topk(min(count, best_QM.shape[1]), dim=1)
        best_QM, rows_QM = kept.values, rows_QM.gather(1, kept.indices)
    return rows_QM.numpy(), best_QM.numpy()


def _best_of(scores_CQ: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``min(count, C)`` best scores of each query, in float32, and their rows, ``(Q, count)``.

    The best are in the groups whose own best are the best: whatever another group holds is no
    better than ``count`` scores here. So most scores are compared once and never sorted.
    """
    import torch

    total, queries = scores_CQ.shape
    size = total // _GROUP
    if size <= count:
        found = scores_CQ.T.float().topk(min(count, total), dim=1)
        return found.values, found.indices
    whole = size * _GROUP
    winners_SQ = scores_CQ[:whole].reshape(_GROUP, size, queries).amax(dim=0)
    groups_QM = winners_SQ.T.topk(count, dim=1).indices
    starts_G = torch.arange(0, whole, size, device=scores_CQ.device)
    rows_QR = (groups_QM.unsqueeze(2) + starts_G).flatten(1)
    rest_R = torch.arange(whole, total, device=scores_CQ.device)
    rows_QR = torch.cat([rows_QR, rest_R.expand(queries, -1)], dim=1)
    found = scores_CQ.T.gather(1, rows_QR).float().topk(count, dim=1)
    return found.values, rows_QR.gather(1, found.indices)
