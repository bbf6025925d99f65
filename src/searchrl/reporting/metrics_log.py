"""``metrics.jsonl``: one JSON object a training step, appended as the run goes.

A line is written in one piece, so a kill can tear only the last one; it is dropped when the log is
opened again. Numbers that are not finite are written as ``null``, because NaN is not JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from searchrl.data.jsonl import write_jsonl
from searchrl.errors import InputError


class MetricsLog:
    """Appends steps to a metrics file, and cuts it back when a run resumes."""

    def __init__(self, path: Path) -> None:
        """Open the log at ``path``, which need not exist; a torn last line is dropped.

        Raises:
            InputError: the file holds a malformed line before its last one.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and not _ends_clean(path):
            write_jsonl(path, read_metrics(path))

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step.

        Raises:
            ValueError: ``values`` has a metric named "step".
        """
        if "step" in values:
            raise ValueError('"step" is the line\'s own key and cannot be a metric')
        row = {"step": step, **{name: _writable(value) for name, value in values.items()}}
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab") as handle:
            handle.write(line.encode())

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps, so that a run resumed after ``step`` writes them again."""
        if self.path.is_file():
            write_jsonl(self.path, [row for row in read_metrics(self.path) if row["step"] <= step])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the steps in the order they were written; a torn last line is left out.

    Raises:
        InputError: the file is missing, or a line before the last one is malformed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    lines = [
        (number, line)
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1)
        if line.strip()
    ]
    rows = []
    for number, line in lines:
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif number != lines[-1][0]:
            raise InputError(
                f'{path}:{number}: not a JSON object with an integer "step"; remove the line'
            )
    return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    """The line's object, or ``None`` when it is torn or malformed."""
    try:
        row = json.loads(line.decode())
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _writable(value: float) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _ends_clean(path: Path) -> bool:
    """Whether the last line is whole, or the file is empty."""
    content = path.read_bytes()
    last = content.rstrip(b"\n").rpartition(b"\n")[2]
    return not last or (content.endswith(b"\n") and _parse(last) is not None)
