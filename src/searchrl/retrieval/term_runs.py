"""Terms with a count each, in sorted runs on disk: a vocabulary of any size in little memory.

Whoever counts terms counts them in memory for a while, appends what came together as a run, and
begins anew. Reading merges the runs a part of the vocabulary at a time; a part has terms of about a
million counts, so that what belongs to a term can be as much as its count says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchrl.data.array_file import ArrayWriter
from searchrl.data.byte_strings import ByteStrings, ByteStringsWriter
from searchrl.data.sorted_runs import cuts, parts

_TERMS, _TOTALS = "terms", "totals.npy"
_SAMPLE = 1 << 13
"""One term for so many counts says where parts are cut."""
_PART = 1 << 20
"""Counts of a part."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RunPart:
    """What one run holds of a part of the vocabulary.

    Attributes:
        terms: ascending.
        starts: the sum of all counts before each term, in this run and those before it.
        counts: of each.
    """

    terms: Sequence[bytes]
    starts: Counts
    counts: Counts


class TermRuns:
    """Runs of terms: appended first, then read; a context manager while they are appended.

    Args:
        directory: holds the files; nothing else of theirs may lie there.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._files = ExitStack()
        self._terms = self._files.enter_context(ByteStringsWriter(directory, _TERMS))
        self._totals = self._files.enter_context(ArrayWriter(directory / _TOTALS, np.int64))
        self._ends: list[int] = []
        self._samples: list[bytes] = []
        self._total = 0

    def __enter__(self) -> TermRuns:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, terms: Sequence[str], counts: Counts) -> None:
        """Add a run.

        Args:
            terms: distinct and ascending.
            counts: of each, none of them 0.
        """
        for term in terms:
            self._terms.append(encoded(term))
        totals = self._total + np.cumsum(counts)
        self._totals.append(totals)
        end = int(totals[-1]) if len(totals) else self._total
        sampled = np.arange(self._total, end, _SAMPLE)
        places = np.searchsorted(totals, sampled, side="right").tolist()
        self._samples += [encoded(terms[place]) for place in places]
        self._ends.append((self._ends[-1] if self._ends else 0) + len(terms))
        self._total = end

    def close(self) -> None:
        """End the appending; once is enough, twice does no harm."""
        self._files.close()

    def cuts(self) -> list[bytes]:
        """Where to cut the vocabulary for ``parts``."""
        return cuts(self._samples, _PART // _SAMPLE)

    def parts(self, at: Sequence[bytes]) -> Iterator[list[RunPart]]:
        """The parts of the vocabulary between ``at``, in order, of each run what belongs there.

        Args:
            at: what ``cuts`` gave, of these runs or of others with which they are read.
        """
        terms = ByteStrings(self._directory, _TERMS)
        totals = np.load(self._directory / _TOTALS, mmap_mode="r").view(np.ndarray)
        for places in parts(terms.__getitem__, self._ends, at):
            yield [_part(terms, totals, each) for each in places if each.start < each.stop]


def encoded(term: str) -> bytes:
    """The bytes of a term, which sort as its code points do."""
    return term.encode("utf-8", "surrogatepass")


def _part(terms: ByteStrings, totals: Counts, places: slice) -> RunPart:
    ends = np.array(totals[places])
    before = totals[places.start - 1] if places.start else 0
    starts = np.concatenate([[before], ends[:-1]])
    return RunPart(terms.run(places.start, places.stop - places.start), starts, ends - starts)
