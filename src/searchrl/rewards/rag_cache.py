"""What naive RAG answers to each question, and whether it was right: the base of Gain Beyond RAG.

The store is one JSON line an entry, appended and flushed as soon as it is known, so a killed
precomputation owes only the line it was writing. The key is a digest of all that decides the
answer (question, gold answers, passages in order, generator), so a changed setting misses instead
of reading a stale score. s3's own ``rag_cache.json``, which is keyed by the question alone, is read
and written beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from searchrl.data.storage import write_json
from searchrl.errors import InputError, IntegrityError

UNKNOWN_FINGERPRINT = ""
"""The fingerprint of entries read from s3's form, which does not say who answered."""


@dataclass(frozen=True, slots=True)
class RagEntry:
    """Naive RAG's result for one question.

    Attributes:
        key: from :func:`cache_key`.
        source: the dataset of the question.
        question: its text; looked up in the form of :func:`question_form`.
        answer: what the generator said; ``None`` when it is not known.
        score: generation accuracy, 0 or 1.
        em_score: exact match, 0 or 1.
        fingerprint: who answered and who judged; ``UNKNOWN_FINGERPRINT`` in s3's own caches.
    """

    key: str
    source: str
    question: str
    answer: str | None
    score: int
    em_score: int
    fingerprint: str


def question_form(text: str) -> str:
    """The form of a question that s3's cache is keyed by: stripped, with a question mark."""
    stripped = text.strip()
    return stripped if stripped.endswith("?") else stripped + "?"


def cache_key(
    question: str, answers: Sequence[str], contents: Sequence[str], fingerprint: str
) -> str:
    """Hex SHA-256 over everything that decides naive RAG's answer and its score.

    Args:
        question: the question's text.
        answers: its gold answers.
        contents: the contents of the passages handed to the generator, in order.
        fingerprint: names the generator (model, prompt, sampling) and the judge.
    """
    parts = [question, list(answers), list(contents), fingerprint]
    # As JSON, no two different lists of parts write the same bytes.
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class RagCache:
    """The store of naive-RAG results; opened with :meth:`open`, one writer at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, RagEntry] = {}
        self._latest: dict[tuple[str, str, str | None], RagEntry] = {}
        self._whole = 0
        self._size = 0

    @classmethod
    def open(cls, path: Path) -> RagCache:
        """Read a store; one that does not exist yet is empty.

        A last line without its line end is the mark of a kill: it is owed again, and the next
        ``put`` writes over it.

        Raises:
            InputError: any other malformed line, with its number, or a directory instead of a file.
        """
        cache = cls(path)
        if path.is_dir():
            raise InputError(f"{path}: is a directory; name the cache file inside it")
        if path.exists():
            cache._load(path.read_bytes())
        return cache

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[RagEntry]:
        return iter(self._entries.values())

    def get(self, key: str) -> RagEntry | None:
        """The entry of a key, or ``None``."""
        return self._entries.get(key)

    def by_question(
        self, source: str, text: str, fingerprint: str | None = None
    ) -> RagEntry | None:
        """The latest entry for a question, or ``None``.

        Args:
            source: the dataset of the question.
            text: the question as asked; brought to :func:`question_form` here.
            fingerprint: only entries of this generator and judge, or else of an unknown one;
                ``None`` for any.
        """
        question = question_form(text)
        entry = self._latest.get((source, question, fingerprint))
        return entry or self._latest.get((source, question, UNKNOWN_FINGERPRINT))

    def put(self, entry: RagEntry) -> None:
        """Append an entry and flush it; it replaces an earlier one of the same key.

        Raises:
            IntegrityError: another program wrote to the file since it was opened.
        """
        line = (json.dumps(asdict(entry), ensure_ascii=False) + "\n").encode(errors="surrogatepass")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        with self._path.open("r+b") as handle:
            if handle.seek(0, 2) != self._size:
                raise IntegrityError(f"{self._path}: another program wrote to it; use one writer")
            handle.seek(self._whole)
            handle.truncate()
            handle.write(line)
        self._whole += len(line)
        self._size = self._whole
        self._remember(entry)

    def _load(self, data: bytes) -> None:
        self._size = len(data)
        self._whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            self._remember(_entry_from_line(line, where=f"{self._path}:{number}"))

    def _remember(self, entry: RagEntry) -> None:
        self._entries[entry.key] = entry
        for fingerprint in (entry.fingerprint, None):
            self._latest[entry.source, question_form(entry.question), fingerprint] = entry


def read_original(path: Path) -> list[RagEntry]:
    """Read s3's ``{source: {question: {"answer", "score", "em_score"}}}``.

    Entries get ``UNKNOWN_FINGERPRINT`` and a key of their source and question, so they can be put
    into a :class:`RagCache`.

    Raises:
        InputError: the file is missing or not of that form.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        tree = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    return [
        _original_entry(source, question, row, where=f"{path}: {source}: {question!r}")
        for source, rows in _fields(tree, where=str(path)).items()
        for question, row in _fields(rows, where=f"{path}: {source}").items()
    ]


def write_original(path: Path, entries: Iterable[RagEntry]) -> None:
    """Write s3's form atomically; of several entries for a question the last one counts."""
    tree: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in entries:
        tree.setdefault(entry.source, {})[question_form(entry.question)] = {
            "answer": entry.answer,
            "score": entry.score,
            "em_score": entry.em_score,
        }
    write_json(path, tree)


def _original_entry(source: str, question: str, row: Any, where: str) -> RagEntry:
    fields = _fields(row, where)
    return RagEntry(
        key=cache_key(question_form(question), (), (source,), UNKNOWN_FINGERPRINT),
        source=source,
        question=question_form(question),
        answer=_answer(fields, where),
        score=_zero_or_one(fields, "score", where),
        em_score=_zero_or_one(fields, "em_score", where),
        fingerprint=UNKNOWN_FINGERPRINT,
    )


def _entry_from_line(line: bytes, where: str) -> RagEntry:
    try:
        value = json.loads(line.decode(errors="surrogatepass"))
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); drop the line") from error
    fields = _fields(value, where)
    return RagEntry(
        key=_string(fields, "key", where),
        source=_string(fields, "source", where),
        question=_string(fields, "question", where),
        answer=_answer(fields, where),
        score=_zero_or_one(fields, "score", where),
        em_score=_zero_or_one(fields, "em_score", where),
        fingerprint=_string(fields, "fingerprint", where),
    )


def _fields(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _string(fields: dict[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InputError(f'{where}: field "{name}" is missing or is not a string')
    return value


def _answer(fields: dict[str, Any], where: str) -> str | None:
    return None if fields.get("answer") is None else _string(fields, "answer", where)


def _zero_or_one(fields: dict[str, Any], name: str, where: str) -> int:
    value = fields.get(name)
    if value not in (0, 1):
        raise InputError(f'{where}: field "{name}" is missing or is neither 0 nor 1')
    return int(value)
