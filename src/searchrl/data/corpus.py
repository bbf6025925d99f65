"""What an index needs to know of a corpus, and a corpus that lies in memory.

Rows number the passages; ``ranks`` puts rows in the order of their ids, which settles equal scores.
A corpus of any size lies on disk instead: ``data.corpus_store``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from searchrl.data.passages import Passage
from searchrl.errors import InputError


class Corpus(Protocol):
    """Passages by row."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Passage: ...

    def __iter__(self) -> Iterator[Passage]: ...

    @property
    def ranks(self) -> npt.NDArray[np.int32]:
        """Place of each row when passages are sorted by id, shape ``(len(self),)``."""
        ...


class MemoryCorpus:
    """A corpus in memory, for small ones; its rows are in the order of the ids."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        """Sort the passages.

        Raises:
            InputError: there is no passage, or an id appears twice.
        """
        self._passages = sorted(passages, key=lambda passage: passage.id)
        if not self._passages:
            raise InputError("the corpus is empty; an index needs at least one passage")
        for left, right in pairwise(self._passages):
            if left.id == right.id:
                raise InputError(f"passage id {left.id!r} appears twice; ids must differ")
        self.ranks = np.arange(len(self._passages), dtype=np.int32)

    def __len__(self) -> int:
        return len(self._passages)

    def __getitem__(self, row: int) -> Passage:
        return self._passages[row]

    def __iter__(self) -> Iterator[Passage]:
        return iter(self._passages)
