"""Many byte strings in two files: their bytes end to end, and where each one starts.

Both are memory-mapped, so a billion strings open as fast as ten and cost no memory until they are
read. Sorted strings can be searched with ``bisect`` as they lie on the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from searchrl.errors import IntegrityError

_BUFFER = 1 << 20
_BLOCK = 1 << 16
"""Strings of which bytes are taken at once: what that needs in between fits a core's cache."""
WORD_BYTES = 8


class ByteStringsWriter:
    """Appends strings to ``NAME.bin`` and their ends to ``NAME.ends``; a context manager."""

    def __init__(self, directory: Path, name: str) -> None:
        self._bytes: IO[bytes] = (directory / f"{name}.bin").open("wb", buffering=_BUFFER)
        self._ends: IO[bytes] = (directory / f"{name}.ends").open("wb", buffering=_BUFFER)
        self._end = 0

    def append(self, value: bytes) -> None:
        """Add one string."""
        self._end += len(value)
        self._bytes.write(value)
        self._ends.write(self._end.to_bytes(8, "little"))

    def __enter__(self) -> ByteStringsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes.close()
        self._ends.close()


class ByteStrings:
    """The strings that a ``ByteStringsWriter`` wrote.

    Attributes:
        bytes: all bytes, shape ``(total,)``.
        ends: where each string ends, shape ``(len(self),)``; it starts where the one before ends.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Map the two files.

        Raises:
            IntegrityError: one is missing, or the two do not belong together.
        """
        self.bytes = _map(directory / f"{name}.bin", np.uint8)
        self.ends = _map(directory / f"{name}.ends", "<i8")
        if len(self.bytes) != (self.ends[-1] if len(self.ends) else 0):
            raise IntegrityError(f"{directory / name}.bin: not as long as its ends say; cut short")
        self._view = self.bytes.data

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        """One string; ``index`` counts from 0, not from the end."""
        if not 0 <= index < len(self.ends):
            raise IndexError(index)
        start = self.ends.item(index - 1) if index else 0
        return bytes(self._view[start : self.ends.item(index)])

    def run(self, start: int, count: int) -> list[bytes]:
        """``count`` neighbours from ``start`` on; IndexError where there are not as many."""
        if start < 0 or start + count > len(self):
            raise IndexError(start)
        place = int(self.ends[start - 1]) if start else 0
        values = []
        for end in self.ends[start : start + count].tolist():
            values.append(bytes(self._view[place:end]))
            place = end
        return values


def eight_bytes(
    text: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    place: int,
) -> npt.NDArray[np.uint64]:
    """Bytes ``place`` to ``place + 8`` of every string as a number, zeros after its end."""
    keys = np.empty(len(starts), np.uint64)
    columns = np.arange(place, place + WORD_BYTES)
    for start in range(0, len(starts), _BLOCK):
        block = slice(start, start + _BLOCK)
        at = starts[block, None] + columns
        inside = columns < lengths[block, None]
        letters = np.where(inside, text[np.minimum(at, len(text) - 1)], 0).astype(np.uint8)
        keys[block] = letters.view(">u8")[:, 0]
    return keys


def _map(path: Path, dtype: Any) -> npt.NDArray[Any]:
    """The file as a read-only array; a file without bytes cannot be mapped and needs no mapping."""
    if not path.is_file():
        raise IntegrityError(f"{path}: missing; build it again")
    size = path.stat().st_size
    if size % np.dtype(dtype).itemsize:
        raise IntegrityError(f"{path}: {size} bytes are no whole number of entries; cut short")
    if size == 0:
        return np.zeros(0, dtype)
    # A plain view keeps the mapping and drops np.memmap's cost at every access.
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
