"""A corpus on disk: opened at once at any size, a passage served in microseconds.

The text of all passages lies end to end in one memory-mapped file: id, title, text, id, title, ...
Rows are the passages in the order of the corpus file, so row n belongs to vector n of an embedding
file made from it. Beside them stands the order of the rows by id: it finds a row by its id with a
binary search and settles equal scores, with no table of ids in memory.

A build streams and sorts the ids piece by piece: its memory does not grow with the corpus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchrl.data.byte_strings import ByteStrings, ByteStringsWriter
from searchrl.data.id_order import Ids, RepeatedIdError, write_order
from searchrl.data.jsonl import read_jsonl
from searchrl.data.passages import Passage, stream_corpus
from searchrl.data.storage import ARRAY_ERRORS, atomic_directory, read_manifest
from searchrl.errors import InputError, IntegrityError

FORM = 1
KIND = "corpus"
MAX_PASSAGES = 2**31 - 1
_FIELDS = 3
_STRINGS, _ORDER, _RANKS = "passages", "order.npy", "ranks.npy"

Progress = Callable[[str, int, int | None], None]
"""Told what is going on, how many passages are done, and of how many where that is known."""


class CorpusStore:
    """The passages of a directory that ``build_corpus_store`` wrote.

    Attributes:
        directory: where they lie.
        order: the row at each place of the order by id, shape ``(len(self),)``.
        ranks: the inverse, the place of each row.
    """

    def __init__(self, directory: Path) -> None:
        """Map the files; none is read in full.

        Raises:
            IntegrityError: a file is missing, cut short, or of another form.
        """
        about = read_manifest(directory)["about"]
        if (about.get("kind"), about.get("form")) != (KIND, FORM):
            raise IntegrityError(f"{directory}: no corpus store of form {FORM}; build it again")
        self.directory = directory
        self._strings = ByteStrings(directory, _STRINGS)
        self.order, self.ranks = (_load(directory / name) for name in (_ORDER, _RANKS))
        sizes = {len(self._strings) / _FIELDS, len(self.order), len(self.ranks)}
        if sizes != {about.get("passages")}:
            raise IntegrityError(f"{directory}: its files differ in length; build it again")

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, row: int) -> Passage:
        return Passage(*map(_decode, self._strings.run(_FIELDS * row, _FIELDS)))

    def __iter__(self) -> Iterator[Passage]:
        return (self[row] for row in range(len(self)))

    def find(self, name: str) -> int | None:
        """The row of the passage with the id ``name``, or None."""
        key = _encode(name)
        place = bisect_left(range(len(self)), key, key=self._id)
        if place == len(self) or self._id(place) != key:
            return None
        return int(self.order[place])

    @property
    def digest(self) -> str:
        """Hex digest of all that the store holds, from its manifest."""
        return str(read_manifest(self.directory)["sha256"])

    def _id(self, place: int) -> bytes:
        """The id at a place of the order."""
        return self._strings[_FIELDS * int(self.order[place])]


def build_corpus_store(
    corpus: Path | Iterable[Passage], out: Path, progress: Progress | None = None
) -> CorpusStore:
    """Write a corpus into the directory ``out``, which appears when it is whole.

    Args:
        corpus: a ``.jsonl`` or ``.jsonl.gz`` file, or passages.
        out: the directory; one that stands there is replaced.
        progress: told of every 10,000th passage.

    Raises:
        InputError: the corpus is empty, a line is malformed, or an id appears twice (both with
            their line numbers where ``corpus`` is a file).
    """
    about: dict[str, Any] = {"kind": KIND, "form": FORM}
    with atomic_directory(out, about) as directory:
        passages = stream_corpus(corpus) if isinstance(corpus, Path) else corpus
        about["passages"] = _write(passages, directory, progress or silent)
        if about["passages"] == 0:
            name = f"{corpus}: " if isinstance(corpus, Path) else ""
            raise InputError(f"{name}the corpus is empty; an index needs at least one passage")
        ids = Ids(ByteStrings(directory, _STRINGS), _FIELDS)
        try:
            write_order(ids, directory / _ORDER, directory / _RANKS)
        except RepeatedIdError as error:
            raise _repeated(_decode(ids[error.first]), error, corpus) from error
    return CorpusStore(out)


def _write(passages: Iterable[Passage], directory: Path, progress: Progress) -> int:
    count = 0
    with ByteStringsWriter(directory, _STRINGS) as writer:
        for count, passage in enumerate(passages, start=1):
            for field in (passage.id, passage.title, passage.text):
                writer.append(_encode(field))
            if count % 10_000 == 0:
                progress("reading the corpus", count, None)
    if count > MAX_PASSAGES:
        raise InputError(f"{count:,} passages are more than one index holds ({MAX_PASSAGES:,})")
    return count


def _repeated(name: str, error: RepeatedIdError, corpus: Path | Iterable[Passage]) -> InputError:
    if not isinstance(corpus, Path):
        return InputError(f"passage id {name!r} appears twice; ids must differ")
    first, second = _line_of(corpus, error.first), _line_of(corpus, error.second)
    return InputError(
        f"{corpus}:{second}: id {name!r} appears twice, first in line {first}; ids must differ"
    )


def _line_of(corpus: Path, row: int) -> int:
    number, _ = next(islice(read_jsonl(corpus), row, None))
    return number


def _load(path: Path) -> npt.NDArray[np.int32]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ARRAY_ERRORS as error:
        raise IntegrityError(f"{path}: cannot be read ({error}); build it again") from error
    if array.ndim != 1 or array.dtype != np.int32:
        raise IntegrityError(f"{path}: no list of rows; build it again")
    rows: npt.NDArray[np.int32] = array.view(np.ndarray)
    return rows


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON may hold half a surrogate pair


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def silent(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""
