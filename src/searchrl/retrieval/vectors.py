"""The vectors of a corpus on disk: one array a shard, memory-mapped, row n for passage n.

Shards are written one by one, each whole or absent, so a build that is killed goes on after the
last whole one, and vectors of any number pass through memory one shard at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchrl.data.storage import ARRAY_ERRORS, atomic_write
from searchrl.errors import InputError, IntegrityError

SHARD_ROWS = 16_384
Source = Callable[[int, int], npt.NDArray[np.float32]]
"""Gives the vectors of rows ``start`` to ``stop``."""


class Vectors:
    """Mapped shards of a directory.

    Attributes:
        dimension: of each vector.
    """

    def __init__(self, directory: Path) -> None:
        """Map the shards.

        Raises:
            IntegrityError: there is none, or one is damaged or of another form than the first.
        """
        files = sorted(directory.glob("vectors-*.npy"))
        if not files:
            raise IntegrityError(f"{directory}: no vectors there; build the index again")
        self._shards = [_map(file) for file in files]
        first, last = self._shards[0], self._shards[-1]
        self.dimension = int(first.shape[1])
        self._rows = len(first)
        for file, shard in zip(files[:-1], self._shards, strict=False):
            if shard.shape != first.shape or shard.dtype != first.dtype:
                raise IntegrityError(f"{file}: differs from the first shard in form")
        if last.shape[1] != self.dimension or last.dtype != first.dtype or len(last) > self._rows:
            raise IntegrityError(f"{files[-1]}: differs from the first shard in form")

    def __len__(self) -> int:
        return self._rows * (len(self._shards) - 1) + len(self._shards[-1])

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield ``(first row, vectors)``, in order; together all of them."""
        for number, shard in enumerate(self._shards):
            yield number * self._rows, shard.astype(np.float32, copy=False)

    def take(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """The vectors of ``rows``, shape ``(len(rows), dimension)``."""
        taken = np.empty((len(rows), self.dimension), np.float32)
        shard_numbers = rows // self._rows
        for number in np.unique(shard_numbers):
            here = shard_numbers == number
            taken[here] = self._shards[number][rows[here] % self._rows]
        return taken


def write_vectors(
    source: Source,
    count: int,
    directory: Path,
    dtype: str,
) -> None:
    """Write the shards that ``directory`` does not hold yet.

    Args:
        source: where vectors come from.
        count: of all rows.
        directory: holds nothing else of this name; made when absent.
        dtype: ``float32`` or ``float16``.

    Raises:
        InputError: a vector holds a number that is not finite, in ``dtype``.
    """
    for number, start in enumerate(range(0, count, SHARD_ROWS)):
        stop = min(start + SHARD_ROWS, count)
        file = directory / f"vectors-{number:06}.npy"
        if not file.is_file():
            with np.errstate(over="ignore"):
                shard = source(start, stop).astype(dtype)
            if not np.isfinite(shard).all():
                row = start + int(np.flatnonzero(~np.isfinite(shard).all(axis=1))[0])
                raise InputError(f"the vector of passage {row} is not finite in {dtype}")
            with atomic_write(file) as handle:
                np.save(handle, shard)


def _map(file: Path) -> npt.NDArray[np.floating]:
    try:
        shard = np.load(file, mmap_mode="r", allow_pickle=False)
    except ARRAY_ERRORS as error:
        raise IntegrityError(f"{file}: cannot be read ({error}); build the index again") from error
    if shard.ndim != 2 or shard.dtype not in (np.float32, np.float16) or 0 in shard.shape:
        raise IntegrityError(f"{file}: no vectors; build the index again")
    plain: npt.NDArray[np.floating] = shard.view(np.ndarray)
    return plain
