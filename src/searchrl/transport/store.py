"""Answers of services, kept on disk by the request they answer.

An answer is keyed by all that was sent for it, so an experiment that is run again, or goes on after
a kill, asks for nothing twice. The oldest answers go when there are more than ``MAX_ANSWERS``.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from searchrl.errors import IntegrityError

MAX_ANSWERS = 1_000_000
_WAIT_SECONDS = 30.0
"""For another process that is writing."""
_ANSWERS = "CREATE TABLE IF NOT EXISTS replies (key TEXT UNIQUE NOT NULL, reply TEXT NOT NULL);"


class AnswerStore:
    """A SQLite file of JSON objects; it is made when the first is put into it.

    Args:
        path: the file.
        tables: SQL that makes what else it holds, where that is not there.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, tables: str = "") -> None:
        self.path = path
        self._tables = _ANSWERS + tables

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer kept under a key, or ``None``.

        Raises:
            IntegrityError: the file is damaged, or is something else.
        """
        if not self.path.exists():
            return None
        with self.transaction() as database:
            return find_answer(database, key)

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer.

        Raises:
            IntegrityError: the file is damaged, or is something else.
        """
        with self.transaction() as database:
            keep_answer(database, key, answer)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is done to the database in the block is done as a whole or not at all.

        Raises:
            IntegrityError: the file is damaged, or is something else.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS)) as database:
                database.executescript(self._tables)
                with database:
                    yield database
        except (sqlite3.Error, ValueError) as error:
            raise IntegrityError(
                f"{self.path}: cannot be used as a store of replies ({error}); delete or move it"
            ) from error


def find_answer(database: sqlite3.Connection, key: str) -> dict[str, Any] | None:
    """The answer under a key, within a transaction."""
    row = database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
    answer: dict[str, Any] | None = None if row is None else json.loads(row[0])
    return answer


def keep_answer(database: sqlite3.Connection, key: str, answer: Mapping[str, Any]) -> None:
    """Keep an answer, within a transaction, and let the oldest go."""
    text = json.dumps(answer)
    database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))
    oldest = "(SELECT max(rowid) FROM replies) - ?"
    database.execute(f"DELETE FROM replies WHERE rowid <= {oldest}", (MAX_ANSWERS,))


def answer_key(url: str, asked: Any) -> str:
    """Hex SHA-256 over where a request goes and all that it says, keys of services apart."""
    return hashlib.sha256(json.dumps([url, asked], sort_keys=True).encode()).hexdigest()
