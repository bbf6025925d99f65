"""Numpy files written piece by piece, for arrays that are longer than memory allows.

The file is a plain ``.npy`` of one axis; ``np.load`` maps it like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class ArrayWriter:
    """Appends to the one axis of a ``.npy`` file; a context manager, whole once it has ended.

    Args:
        path: the file; what stands there is overwritten.
        dtype: of the array; pieces are cast to it.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, piece: npt.NDArray[Any]) -> None:
        """Add the numbers of ``piece``, shape ``(n,)``."""
        self._file.write(np.ascontiguousarray(piece, self._dtype).data)
        self._length += len(piece)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # numpy pads a header so that the first axis can grow and the header stays as long.
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._length,),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
