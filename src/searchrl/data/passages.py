"""Passages and the corpus files that hold them.

A passage keeps its title apart from its text; the two are joined only where something is rendered
or indexed. All three line forms in use are read: ``{"id","contents"}`` with ``contents`` = quoted
title, newline, text (Search-R1, s3, FlashRAG, Pyserini), ``{"id","title","text"}`` (DPR), and
``{"_id","title","text"}`` (BEIR).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchrl.data.jsonl import read_jsonl
from searchrl.errors import InputError


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that can be retrieved.

    Attributes:
        id: the corpus's own identifier, always a string.
        title: may be empty.
        text: the body, without the title.
    """

    id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """The one-string form that is indexed and served: quoted title, newline, text."""
        return f'"{self.title}"\n{self.text}'


def read_corpus(path: Path) -> Iterator[Passage]:
    """Stream the passages of a ``.jsonl`` or ``.jsonl.gz`` corpus.

    Raises:
        InputError: a malformed line (with its number), a repeated id, or no passage at all.
    """
    seen: set[str] = set()
    for number, passage in _numbered_lines(path):
        if passage.id in seen:
            raise InputError(f"{path}:{number}: id {passage.id!r} appears twice; ids must differ")
        seen.add(passage.id)
        yield passage
    if not seen:
        raise InputError(f"{path}: the corpus is empty; it needs at least one passage")


def stream_corpus(path: Path) -> Iterator[Passage]:
    """As ``read_corpus`` in constant memory: repeated ids and an empty corpus are let through."""
    return (passage for _, passage in _numbered_lines(path))


def _numbered_lines(path: Path) -> Iterator[tuple[int, Passage]]:
    for number, row in read_jsonl(path):
        yield number, passage_from_row(row, where=f"{path}:{number}")


def passage_from_row(row: dict[str, Any], where: str) -> Passage:
    """Build a passage from a corpus line of any known form; ``where`` opens error messages."""
    identifier = row.get("id", row.get("_id"))
    if not isinstance(identifier, str | int) or isinstance(identifier, bool):
        raise InputError(f'{where}: field "id" is missing or is not a string')
    if "text" in row:
        title, text = row.get("title", ""), row["text"]
    elif isinstance(row.get("contents"), str):
        title, text = split_contents(row["contents"])
    else:
        raise InputError(f'{where}: neither "contents" nor "text" is there')
    for field, value in (("title", title), ("text", text)):
        if not isinstance(value, str):
            raise InputError(f'{where}: field "{field}" is {type(value).__name__}, not a string')
    return Passage(str(identifier), title, text)


def split_contents(contents: str) -> tuple[str, str]:
    """Split ``contents`` into title and text; one pair of surrounding quotes is dropped."""
    title, _, text = contents.partition("\n")
    if len(title) >= 2 and title.startswith('"') and title.endswith('"'):
        title = title[1:-1]
    return title, text
