"""Line-delimited JSON, plain or gzipped, where every complaint names the file and the line.

A reader never skips a malformed line: it raises, so that nothing is lost without a word.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from searchrl.data.storage import atomic_write
from searchrl.errors import InputError


def open_text(path: Path) -> IO[str]:
    """Open a text file for reading, through gzip when its name ends in ``.gz``."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number from 1, object)`` for every line that is not blank.

    Raises:
        InputError: the file is missing, cannot be decoded, or a line is not a JSON object.
    """
    number = 0
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                yield number, _parse_object(path, number, line)
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read after line {number}: {error}") from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows atomically, one JSON object a line, gzipped when the name ends in ``.gz``."""
    with atomic_write(path) as handle:
        if path.suffix == ".gz":
            # mtime=0 keeps the bytes a function of the rows alone.
            with gzip.GzipFile(fileobj=handle, mode="wb", mtime=0) as packed:
                for row in rows:
                    packed.write(_line(row))
        else:
            for row in rows:
                handle.write(_line(row))


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _parse_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno})"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
    return value
