"""Where the vectors of an index come from: an encoder, or a file that another program wrote.

Two forms of files are read, mapped and in order, so that their size does not matter: ``.npy`` with
one row a passage, and faiss's ``IndexFlat`` (``e5_Flat.index``). The latter is taken apart here,
header and rows, and never handed to faiss: its reader builds whatever type a file names.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchrl.data.corpus import Corpus
from searchrl.data.corpus_store import Progress
from searchrl.data.storage import ARRAY_ERRORS
from searchrl.errors import InputError
from searchrl.retrieval.encoder import Encoder
from searchrl.retrieval.shards import Shard
from searchrl.retrieval.vectors import Source

_PIECE = 1_024
"""Passages that are encoded between two reports."""
_FLAT = {b"IxFI": "inner product", b"IxF2": "distance", b"IxFl": "other"}
_HEADER = struct.Struct("<4siqqq?iQ")
"""Type, dimension, count, two fillers, whether trained, metric, number of floats that follow."""
_INNER_PRODUCT = 0
_SPOT_CHECKS = 8
_LEAST_COSINE = 0.98
_TIE = 1e-6


def encoded(corpus: Corpus, encoder: Encoder, progress: Progress) -> Source:
    """Vectors of passages, computed when they are asked for."""

    def vectors(start: int, stop: int) -> npt.NDArray[np.float32]:
        pieces = []
        for first in range(start, stop, _PIECE):
            last = min(first + _PIECE, stop)
            pieces.append(encoder.encode_passages(corpus[row] for row in range(first, last)))
            progress("encoding passages", last, len(corpus))
        return np.concatenate(pieces)

    return vectors


def from_file(
    file: Path,
    corpus: Corpus,
    encoder: Encoder,
    progress: Progress,
    shard: Shard | None = None,
) -> Source:
    """Vectors of a ``.npy`` or faiss file, which has to be made from the same corpus.

    Args:
        file: the file.
        corpus: its passages, in the order of the vectors.
        encoder: of passages; encodes a few of them again, to see that the file is its own.
        progress: told of the rows that are copied.
        shard: the part of the file's corpus that ``corpus`` is.

    Raises:
        InputError: the file is of another form, or not made from this corpus by this encoder.
    """
    rows = open_vectors(file)
    if shard is not None:
        rows = rows[shard.number - 1 :: shard.of]
    expected = (len(corpus), encoder.settings.dimension)
    if rows.shape != expected:
        raise InputError(
            f"{file}: holds {rows.shape[0]:,} vectors of {rows.shape[1]} dimensions; the corpus "
            f"and {encoder.settings.model} ask for {expected[0]:,} of {expected[1]}"
        )
    _check_spots(file, rows, corpus, encoder)

    def vectors(start: int, stop: int) -> npt.NDArray[np.float32]:
        progress("copying vectors", stop, len(corpus))
        return np.asarray(rows[start:stop], np.float32)

    return vectors


def open_vectors(file: Path) -> npt.NDArray[np.floating]:
    """Map the rows of a ``.npy`` or faiss ``IndexFlat`` file, shape ``(N, D)``.

    Raises:
        InputError: it is missing, of another form, or damaged.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with file.open("rb") as handle:
        header = handle.read(_HEADER.size)
    if not header.startswith(b"\x93NUMPY"):
        return _faiss_rows(file, header)
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except ARRAY_ERRORS as error:
        raise InputError(f"{file}: cannot be read as vectors: {error}") from error
    if rows.ndim != 2 or rows.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(f"{file}: needs two axes of floats, not {rows.shape} of {rows.dtype}")
    found: npt.NDArray[np.floating] = rows.view(np.ndarray)
    return found


def _faiss_rows(file: Path, header: bytes) -> npt.NDArray[np.floating]:
    kind = header[:4]
    if kind not in _FLAT or len(header) < _HEADER.size:
        raise InputError(
            f"{file}: neither .npy nor a faiss IndexFlat (its type is {kind!r}); other faiss "
            "indexes do not hold their vectors whole: export them with reconstruct_n to .npy"
        )
    _, dimension, count, _, _, _, metric, floats = _HEADER.unpack(header)
    if metric != _INNER_PRODUCT:
        raise InputError(f"{file}: is searched by {_FLAT[kind]}; only inner products are known")
    size = file.stat().st_size - _HEADER.size
    if dimension <= 0 or count <= 0 or floats != dimension * count or size != 4 * floats:
        raise InputError(f"{file}: a faiss IndexFlat that is cut short or damaged")
    rows = np.memmap(file, "<f4", "r", offset=_HEADER.size, shape=(count, dimension))
    found: npt.NDArray[np.floating] = rows.view(np.ndarray)
    return found


def _check_spots(
    file: Path, rows: npt.NDArray[np.floating], corpus: Corpus, encoder: Encoder
) -> None:
    """Encode a few passages: most have to find their own row, and be almost equal to it."""
    spots = np.linspace(0, len(corpus) - 1, _SPOT_CHECKS).astype(int)
    ours = _unit(encoder.encode_passages(corpus[int(spot)] for spot in spots))
    cosines = ours @ _unit(np.asarray(rows[spots], np.float32)).T
    own = np.diagonal(cosines)
    # Some may differ, as where the text was cut elsewhere.
    found, alike = np.mean(own >= cosines.max(axis=1) - _TIE), float(np.median(own))
    if not (found > 0.5 and alike >= _LEAST_COSINE):
        raise InputError(
            f"{file}: is not what {encoder.settings.model} makes of this corpus (cosine "
            f"{alike:.3f}, {found:.0%} of passages find their vector); check the encoder, its "
            "prefix and pooling, and the order of passages"
        )


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    exact = vectors.astype(np.float64)
    units: npt.NDArray[np.float64] = exact / np.maximum(
        np.linalg.norm(exact, axis=1, keepdims=True), 1e-30
    )
    return units
