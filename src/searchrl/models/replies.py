"""Replies of served models, kept on disk with an account of what they cost.

A request is paid for once, see ``AnswerStore``. A reply and its cost are written in one
transaction; the account keeps what replies that have gone have cost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchrl.transport.store import AnswerStore, find_answer, keep_answer

_USAGE = """
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
        self._store = AnswerStore(path, _USAGE)

    def get(self, key: str, model: str) -> dict[str, Any] | None:
        """The reply kept under a key, counted as reused by ``model``, or ``None``.

        Raises:
            IntegrityError: the file is damaged, or is something else.
        """
        if not self._store.path.exists():
            return None
        with self._store.transaction() as database:
            reply = find_answer(database, key)
            if reply is not None:
                _add(database, Usage(model, reused=1))
        return reply

    def put(self, key: str, reply: Mapping[str, Any], usage: Usage) -> None:
        """Keep a reply and add what it took to the account, both or neither.

        Raises:
            IntegrityError: the file is damaged, or is something else.
        """
        with self._store.transaction() as database:
            keep_answer(database, key, reply)
            _add(database, usage)

    def usage(self) -> list[Usage]:
        """The account so far, by model.

        Raises:
            IntegrityError: the file is damaged, or is something else.
        """
        if not self._store.path.exists():
            return []
        with self._store.transaction() as database:
            rows = database.execute("SELECT * FROM usage ORDER BY model").fetchall()
        return [Usage(*row) for row in rows]


def _add(database: sqlite3.Connection, usage: Usage) -> None:
    names = ("requests", "reused", "prompt_tokens", "completion_tokens", "cost")
    sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in names)
    database.execute(
        f"INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (model) DO UPDATE SET {sums}",
        (usage.model, *(getattr(usage, name) for name in names)),
    )
