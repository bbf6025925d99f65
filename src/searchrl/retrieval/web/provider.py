"""What every search service is asked, and how its answer is believed.

A provider turns a query and a page number into one request, and an answer into results. An answer
without results is told from one that is none: only what the service itself calls "nothing found" is
an empty list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from searchrl.transport.errors import MalformedAnswerError
from searchrl.transport.keys import Credential
from searchrl.transport.service import CONFIGURATION_STATUS, Call


@dataclass(frozen=True, slots=True)
class WebResult:
    """One result of a search: an address, and what the service says of it."""

    url: str
    title: str
    snippet: str


class Provider(ABC):
    """One search service.

    Attributes:
        name: as a recipe writes it.
        url: its address; empty where everybody runs their own.
        key_variable: the environment variable that its documentation names; ``None`` where it
            needs no key.
        max_query: characters after which a query is cut.
        pages: pages of results that can be asked for.
        refusals: statuses that are the user's to mend: a wrong key, a plan that is used up.
        notice: what a user has to know before starting.
    """

    name: ClassVar[str]
    url: ClassVar[str] = ""
    key_variable: ClassVar[str | None]
    max_query: ClassVar[int] = 2_048
    pages: ClassVar[int] = 10
    refusals: ClassVar[frozenset[int]] = CONFIGURATION_STATUS | {402}
    notice: ClassVar[str | None] = None

    def __init__(self, extra: Mapping[str, Any]) -> None:
        self.extra = dict(extra)

    @abstractmethod
    def credential(self, key: str) -> Credential:
        """Where the service wants the key."""

    @abstractmethod
    def call(self, query: str, page: int) -> Call:
        """The request for one page of results, the first being 0."""

    @abstractmethod
    def results(self, answer: Mapping[str, Any]) -> list[WebResult]:
        """The results in an answer, best first.

        Raises:
            MalformedAnswerError: it is not what the service answers.
            UnavailableError: it says that the search failed.
        """

    def get(self, path: str, fields: Mapping[str, Any]) -> Call:
        """A GET with these fields and the recipe's own."""
        return Call(path, params={name: _text(value) for name, value in self._with(fields)})

    def post(self, path: str, fields: Mapping[str, Any]) -> Call:
        """A POST with these fields and the recipe's own."""
        return Call(path, body=dict(self._with(fields)))

    def rows(self, found: Any, url: str, title: str, snippet: str) -> list[WebResult]:
        """Results from a list of objects, by the names of their fields; others are passed over.

        Raises:
            MalformedAnswerError: it is no list, or holds nothing with an address.
        """
        if not isinstance(found, list):
            raise self.malformed(f"the results are {type(found).__name__}, not a list")
        results = [
            WebResult(row[url], _line(row.get(title)), _line(row.get(snippet)))
            for row in found
            if isinstance(row, dict) and _is_address(row.get(url))
        ]
        if found and not results:
            raise self.malformed("no result has an address")
        return results

    def malformed(self, what: str) -> MalformedAnswerError:
        """The error of an answer that is none."""
        return MalformedAnswerError(f"{self.name}: {what}")

    def _with(self, fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
        return list({**fields, **self.extra}.items())


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def _line(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _text(value: Any) -> str:
    """A value as a query string holds it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
