"""Line-delimited JSON, plain or gzipped, where every complaint names the file and the line.

A reader never skips a malformed line: it raises, so that nothing is lost without a word.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from searchrl.data.storage import atomic_write
from searchrl.errors import InputError


def open_text(path: Path) -> IO[str]:
    """Open a UTF-8 file for reading, through gzip when its name ends in ``.gz``."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig"))
    return path.open(encoding="utf-8-sig")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line number from 1, line)`` for every line that is not blank.

    Raises:
        InputError: the file is missing or cannot be read, unpacked or decoded to its end.
    """
    number = 0
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read after line {number}: {error}") from error


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number from 1, object)`` for every line that is not blank.

    Raises:
        InputError: as ``read_lines``, or a line is not a JSON object.
    """
    for number, line in read_lines(path):
        yield number, _parse_object(path, number, line)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows atomically, one JSON object a line, gzipped when the name ends in ``.gz``."""
    with atomic_write(path) as handle:
        if path.suffix == ".gz":
            # mtime=0 keeps the bytes a function of the rows alone.
            with gzip.GzipFile(fileobj=handle, mode="wb", mtime=0) as packed:
                for row in rows:
                    packed.write(json_line(row))
        else:
            for row in rows:
                handle.write(json_line(row))


def json_line(row: Mapping[str, Any]) -> bytes:
    """One row as it is written, with its line end."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair: JSON can hold it escaped, UTF-8 cannot
        return (json.dumps(row) + "\n").encode()


def _parse_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise InputError(f"{path}:{number}: JSON that cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
    return value
