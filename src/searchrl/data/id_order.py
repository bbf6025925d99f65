"""The rows of a corpus in the order of their ids, found in memory that does not grow with it.

Rows are sorted in runs and merged (``sorted_runs``). Both steps are the same radix sort, eight
bytes at a time from the last: UTF-8 sorts like the code points it encodes. Padding makes a short id
equal to one with NULs after it; the lengths, sorted first and so least significant, tell the two
apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchrl.data.array_file import ArrayWriter
from searchrl.data.byte_strings import WORD_BYTES, ByteStrings, eight_bytes
from searchrl.data.sorted_runs import cuts, parts

_RUN = 1 << 19
"""Rows that are sorted at once."""
_SAMPLE = 1 << 11
"""One row in so many says where parts of the order are cut."""
_SPOOL = "order.tmp"

Rows = npt.NDArray[np.int64]


class RepeatedIdError(Exception):
    """Two rows have one id.

    Attributes:
        first: the earlier of the rows.
        second: the other one.
    """

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"rows {first} and {second} have one id")
        self.first, self.second = first, second


class Ids:
    """The ids among the strings of a corpus.

    Args:
        strings: of all passages, ``fields`` for each; the first is its id.
        fields: how many strings a passage has.
    """

    def __init__(self, strings: ByteStrings, fields: int) -> None:
        self._strings = strings
        self._fields = fields

    def __len__(self) -> int:
        return len(self._strings) // self._fields

    def __getitem__(self, row: int) -> bytes:
        return self._strings[self._fields * row]

    def sorted(self, rows: Rows) -> Rows:
        """Rows, ascending, in the order of their ids; equal ids in the order of their rows."""
        starts, lengths = self._places(rows)
        order = np.argsort(lengths, kind="stable")
        for word in reversed(_words(lengths)):
            keys = eight_bytes(self._strings.bytes, starts, lengths, word)[order]
            order = order[np.argsort(keys, kind="stable")]
        return rows[order]

    def check_distinct(self, rows: Rows) -> None:
        """See that no two of the rows, in the order of their ids, have one id.

        Raises:
            RepeatedIdError: two have.
        """
        starts, lengths = self._places(rows)
        same = lengths[1:] == lengths[:-1]
        for word in _words(lengths):
            keys = eight_bytes(self._strings.bytes, starts, lengths, word)
            same &= keys[1:] == keys[:-1]
        if same.any():
            at = int(np.flatnonzero(same)[0])
            raise RepeatedIdError(*rows[at : at + 2].tolist())

    def _places(self, rows: Rows) -> tuple[Rows, Rows]:
        """Where ids start and how long they are: one starts where the text before it ends."""
        first = self._fields * rows
        ends = self._strings.ends
        starts = np.where(first > 0, ends[np.maximum(first - 1, 0)], 0)
        return starts, ends[first] - starts


def _words(lengths: npt.NDArray[np.int64]) -> range:
    """Where the eight bytes that are compared at once start, in the longest of the ids."""
    return range(0, int(lengths.max(initial=0)), WORD_BYTES)


def write_order(ids: Ids, order: Path, ranks: Path) -> None:
    """Write the row at each place of the order, and its inverse, the place of each row.

    Args:
        ids: of a corpus.
        order: the ``.npy`` file of rows, int32.
        ranks: the ``.npy`` file of places, int32.

    Raises:
        RepeatedIdError: an id appears twice.
    """
    spool = order.with_name(_SPOOL)
    with ArrayWriter(spool, np.int32) as writer:
        samples = []
        ends = [*range(_RUN, len(ids), _RUN), len(ids)]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            rows = ids.sorted(np.arange(start, end))
            samples += [ids[row] for row in rows[::_SAMPLE].tolist()]
            writer.append(rows)
    runs = np.load(spool, mmap_mode="r").view(np.ndarray)
    at = cuts(samples, _RUN // _SAMPLE)
    places = np.lib.format.open_memmap(ranks, "w+", np.int32, (len(ids),))
    done = 0
    with ArrayWriter(order, np.int32) as writer:
        for part in parts(lambda place: ids[int(runs[place])], ends, at):
            rows = ids.sorted(np.concatenate([runs[each] for each in part]).astype(np.int64))
            ids.check_distinct(rows)
            writer.append(rows)
            places[rows] = np.arange(done, done + len(rows), dtype=np.int32)
            done += len(rows)
    places.flush()
    spool.unlink()
