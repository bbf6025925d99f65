"""The tables of an index under construction: bounds by which a search leaves passages out.

A frequent term has one, a byte for every passage, see ``TermPostings.table``. They are computed
from the postings, which are in place by then, in blocks; tables and postings are mapped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchrl.retrieval.maxscore import fill_table
from searchrl.retrieval.postings import (
    MOST,
    ROWS,
    SMALL,
    STARTS,
    TABLED,
    TABLES,
    WEIGHTS,
    load,
    table_step,
)

_SHARE = 16
"""A term that one in so many passages holds has a table: two bytes a posting at most."""
_BLOCK = 1 << 20
"""Numbers of a mapped array that are computed with at once."""


def write_tables(directory: Path, passages: int) -> None:
    """Write the tables of the most frequent terms, see ``TermPostings.table``."""
    starts, most = load(directory / STARTS, np.int64), load(directory / MOST, np.float32)
    rows, weights = load(directory / ROWS, np.int32), load(directory / WEIGHTS, np.float32)
    tabled = _frequent(starts, passages) if passages > SMALL else np.zeros(0, np.int64)
    np.save(directory / TABLED, tabled)
    shape = (len(tabled), passages)
    tables = np.lib.format.open_memmap(directory / TABLES, "w+", np.uint8, shape)
    step = table_step(most, tabled)
    for entries, number in zip(tables, tabled.tolist(), strict=True):
        for start in range(starts[number], starts[number + 1], _BLOCK):
            block = slice(start, min(start + _BLOCK, starts[number + 1]))
            fill_table(entries, rows[block], weights[block], step)
    tables.flush()


def _frequent(starts: npt.NDArray[np.int64], passages: int) -> npt.NDArray[np.int64]:
    """The terms that one passage in ``_SHARE`` holds, at least."""
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(starts) - 1, _BLOCK):
        holders = np.diff(starts[start : start + _BLOCK + 1])
        found.append(start + np.flatnonzero(holders * _SHARE >= passages))
    return np.concatenate(found)
