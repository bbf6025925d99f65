"""Replies of served models, kept on disk with an account of what they cost.

A reply is keyed by all that was sent for it, so an experiment that is run again, or goes on after
a kill, pays for no request twice. A reply and its cost are written in one transaction. The oldest
replies go when there are more than ``MAX_REPLIES``; the account keeps everything.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchrl.errors import IntegrityError

MAX_REPLIES = 1_000_000
_WAIT_SECONDS = 30.0
"""For another process that is writing."""
_TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT UNIQUE NOT NULL, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS usage (
    model TEXT PRIMARY KEY, requests INTEGER, reused INTEGER,
    prompt_tokens INTEGER, completion_tokens INTEGER, cost REAL
);
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was asked of one model.

    Attributes:
        model: its name.
        requests: answered by the server.
        reused: answered from the store.
        prompt_tokens: of the requests, as the server counts them.
        completion_tokens: of the requests' answers.
        cost: in the currency of the recipe's prices.
    """

    model: str
    requests: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        text = f"{self.model}: {self.requests:,} requests ({self.reused:,} reused), {tokens}"
        return text + (f", cost {self.cost:.4f}" if self.cost else "")


class ReplyStore:
    """A file of replies; it is made when the first reply is put into it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str, model: str) -> dict[str, Any] | None:
        """The reply kept under a key, counted as reused by ``model``, or ``None``.

        Raises:
            IntegrityError: the file is damaged, or is something else.
        """
        if not self._path.exists():
            return None
        with self._transaction() as database:
            row = database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            self._add(database, Usage(model, reused=1))
        reply: dict[str, Any] = json.loads(row[0])
        return reply

    def put(self, key: str, reply: Mapping[str, Any], usage: Usage) -> None:
        """Keep a reply and add what it took to the account, both or neither.

        Raises:
            IntegrityError: the file is damaged, or is something else.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            text = json.dumps(reply)
            database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))
            oldest = "(SELECT max(rowid) FROM replies) - ?"
            database.execute(f"DELETE FROM replies WHERE rowid <= {oldest}", (MAX_REPLIES,))
            self._add(database, usage)

    def usage(self) -> list[Usage]:
        """The account so far, by model.

        Raises:
            IntegrityError: the file is damaged, or is something else.
        """
        if not self._path.exists():
            return []
        with self._transaction() as database:
            rows = database.execute("SELECT * FROM usage ORDER BY model").fetchall()
        return [Usage(*row) for row in rows]

    @staticmethod
    def _add(database: sqlite3.Connection, usage: Usage) -> None:
        names = ("requests", "reused", "prompt_tokens", "completion_tokens", "cost")
        sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in names)
        database.execute(
            f"INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (model) DO UPDATE SET {sums}",
            (usage.model, *(getattr(usage, name) for name in names)),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=_WAIT_SECONDS)) as database:
                database.executescript(_TABLES)
                with database:
                    yield database
        except (sqlite3.Error, ValueError) as error:
            raise IntegrityError(
                f"{self._path}: cannot be used as a store of replies ({error}); delete or move it"
            ) from error


def reply_key(url: str, body: Mapping[str, Any]) -> str:
    """Hex SHA-256 over where a request goes and all that it says."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()
