"""``episodes.jsonl``: the episodes of an evaluation with their scores, kept as they finish.

A line is written in one piece, so a kill can tear only the last one; that question is owed again,
as is one that met a failed service. ``evaluation.json`` beside it says with which settings each
method ran, and every line names a digest of them: what was made otherwise is refused and never
mixed in. When an evaluation ends, the lines are brought into the order of methods and questions,
as if it had never been interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from searchrl.data.jsonl import json_line
from searchrl.data.locks import hold
from searchrl.data.questions import Question
from searchrl.data.storage import atomic_write, write_json
from searchrl.errors import InputError, IntegrityError
from searchrl.evaluation.runner import Evaluated
from searchrl.evaluation.table import EpisodeScore
from searchrl.recipe_file import leaves

Settings = Mapping[str, Any]
"""What a method's scores depend on; JSON values by name."""

_SCORED = tuple(
    field.name
    for field in dataclasses.fields(EpisodeScore)
    if field.name not in ("question_id", "method", "source", "failed")
)
_SYNC_SECONDS = 1.0
"""A line is out of this process at once, and on the disk at most so much later."""

_Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Line:
    """Where an episode stands in the file, and what it says."""

    start: int
    length: int
    question: Mapping[str, Any]
    score: EpisodeScore


class EpisodeLog:
    """The finished episodes of one directory; opened with :meth:`open`."""

    def __init__(self, path: Path, handle: IO[bytes], settings: Mapping[str, Settings]) -> None:
        self._path = path
        self._handle = handle
        self._digests = {method: _digest(values) for method, values in settings.items()}
        self._lines: dict[_Key, _Line] = {}
        self._end = 0
        self._synced = time.monotonic()

    @classmethod
    @contextmanager
    def open(
        cls, out: Path, settings: Mapping[str, Settings], restart: bool = False
    ) -> Iterator[EpisodeLog]:
        """Hold a directory's episodes for writing.

        Args:
            out: the directory, made where there is none.
            settings: of each method that is to be evaluated, by its name.
            restart: forget what these methods have finished there.

        Raises:
            InputError: a method was evaluated there with other settings, another process is
                evaluating there, or the directory cannot be written.
            IntegrityError: a file there is damaged.
        """
        with hold(out, ".evaluation.lock", "evaluating there"):
            path, record = out / "episodes.jsonl", out / "evaluation.json"
            recorded = _read_record(record)
            if restart:
                recorded = {name: v for name, v in recorded.items() if name not in settings}
                # Before the record is written, which would vouch for these lines.
                _drop(path, settings.keys())
            for method, values in settings.items():
                _refuse_other(record, method, recorded.get(method, values), values)
            everything = {**recorded, **settings}
            write_json(record, {"methods": everything})
            path.touch()
            with path.open("r+b") as handle:
                log = cls(path, handle, everything)
                log._load()
                yield log
                os.fsync(handle.fileno())

    def owed(self, method: str, questions: Sequence[Question]) -> list[Question]:
        """The questions that a method has not finished, as they are now; failed ones are owed."""
        return [question for question in questions if not self._has(method, question)]

    def _has(self, method: str, question: Question) -> bool:
        line = self._lines.get((method, question.source, question.id))
        return line is not None and not line.score.failed and line.question == question.to_row()

    def append(self, item: Evaluated) -> None:
        """Keep a finished episode; it takes the place of an earlier one of the same question."""
        score, method = item.score, item.score.method
        values = dataclasses.asdict(score)
        kept = None if score.failed else {name: values[name] for name in _SCORED}
        row = item.episode.to_row()
        line = json_line(row | {"settings": self._digests[method], "score": kept})
        self._handle.seek(self._end)
        self._handle.write(line)
        self._handle.flush()
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            os.fsync(self._handle.fileno())
            self._synced = time.monotonic()
        key = (method, score.source, score.question_id)
        self._lines[key] = _Line(self._end, len(line), row["question"], score)
        self._end += len(line)

    def arrange(self, methods: Sequence[str], questions: Sequence[Question]) -> list[EpisodeScore]:
        """Bring the file into order, other episodes last, and return the scores asked for.

        Nothing is appended afterwards.
        """
        keys = [(method, q.source, q.id) for method in methods for q in questions]
        asked = [self._lines[key] for key in keys]
        others = self._lines.keys() - set(keys)
        rest = [line for key, line in self._lines.items() if key in others]
        with atomic_write(self._path) as out:
            for line in (*asked, *rest):
                self._handle.seek(line.start)
                out.write(self._handle.read(line.length))
        return [line.score for line in asked]

    def _load(self) -> None:
        """Read the whole lines; what follows the last line end was torn by a kill."""
        for row, line in _rows(self._path, self._handle):
            method, source = row["method"], row["question"]["source"]
            if row.get("settings") == self._digests.get(method, ""):
                place = _Line(self._end, len(line), row["question"], _score(row))
                self._lines[method, source, row["id"]] = place
            self._end += len(line)
        self._handle.truncate(self._end)


def _drop(path: Path, methods: Collection[str]) -> None:
    """Remove the lines of some methods."""
    if path.is_file():
        with path.open("rb") as handle, atomic_write(path) as out:
            for row, line in _rows(path, handle):
                if row["method"] not in methods:
                    out.write(line)


def _rows(path: Path, handle: IO[bytes]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The whole lines of a file of episodes, parsed and as they are.

    Raises:
        IntegrityError: one of them is not an episode with its score.
    """
    for number, line in enumerate(handle, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            _score(row)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"{path}:{number}: damaged; remove the line") from error
        yield row, line


def _score(row: Mapping[str, Any]) -> EpisodeScore:
    values = row["score"]
    known = dict.fromkeys(_SCORED, 0.0) if values is None else {n: values.get(n) for n in _SCORED}
    source = row["question"]["source"]
    return EpisodeScore(row["id"], row["method"], source, **known, failed=values is None)


def _digest(settings: Settings) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _read_record(path: Path) -> dict[str, Settings]:
    if not path.is_file():
        return {}
    try:
        methods: dict[str, Settings] = dict(json.loads(path.read_bytes())["methods"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise IntegrityError(f"{path}: damaged; remove it to evaluate anew") from error
    return methods


def _refuse_other(record: Path, method: str, before: Settings, after: Settings) -> None:
    """See that a method ran with the settings it has now; JSON knows no tuples."""
    there, now = leaves(dict(before)), leaves(json.loads(json.dumps(after)))
    changed = [
        f"{key} ({there.get(key)} there, {now.get(key)} now)"
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
    ]
    if changed:
        raise InputError(
            f"{record}: {method} was evaluated with another {', '.join(changed)}; "
            "add --restart to begin anew or choose another --out"
        )
