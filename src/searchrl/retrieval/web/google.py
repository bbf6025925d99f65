"""Google's Programmable Search, JSON API. https://developers.google.com/custom-search/v1

Closed to new customers; Google ends it on 1 January 2027.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchrl.retrieval.web.provider import Provider, WebResult
from searchrl.transport.keys import Credential
from searchrl.transport.service import Call

_PAGE = 10


class Google(Provider):
    """Ten results a page, a hundred in all.

    Args:
        extra: more fields for each request.
        engine_id: the search engine.
    """

    name = "google"
    url = "https://customsearch.googleapis.com"
    key_variable = "GOOGLE_API_KEY"
    notice = (
        "Google's Programmable Search API takes no new customers and ends on 1 January 2027; "
        "serper and serpapi answer with Google's results"
    )

    def __init__(self, extra: Mapping[str, Any], engine_id: str) -> None:
        super().__init__(extra)
        self._engine_id = engine_id

    def credential(self, key: str) -> Credential:
        """The header that Google's services share; in the query it would be logged on the way."""
        return Credential(key, "X-Goog-Api-Key", scheme="")

    def call(self, query: str, page: int) -> Call:
        """Results are counted from 1."""
        fields = {"cx": self._engine_id, "q": query, "num": _PAGE, "start": page * _PAGE + 1}
        return self.get("/customsearch/v1", fields)

    def results(self, answer: Mapping[str, Any]) -> list[WebResult]:
        """See ``Provider.results``."""
        if answer.get("kind") != "customsearch#search":
            raise self.malformed(f"the answer's kind is {answer.get('kind')!r}")
        # A search that finds nothing has no list, and counts none.
        return self.rows(answer.get("items", []), "link", "title", "snippet")
