"""SearXNG, a metasearch engine of one's own. https://docs.searxng.org/dev/search_api.html

Its settings have to allow the format ``json``, which they do not by default: it answers 403 then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchrl.retrieval.web.provider import Provider, WebResult
from searchrl.transport.errors import UnavailableError
from searchrl.transport.keys import Credential
from searchrl.transport.service import Call


class SearXng(Provider):
    """Asks the search engines that it is set up with."""

    name = "searxng"
    key_variable = None

    def credential(self, key: str) -> Credential:
        """A bearer token, for a proxy in front of it."""
        return Credential(key)

    def call(self, query: str, page: int) -> Call:
        """How many results a page has depends on the engines."""
        return self.get("/search", {"q": query, "format": "json", "pageno": page + 1})

    def results(self, answer: Mapping[str, Any]) -> list[WebResult]:
        """See ``Provider.results``; nothing found while engines were silent is a failure."""
        if "results" not in answer:
            raise self.malformed("the answer has no field results")
        silent = answer.get("unresponsive_engines")
        if not answer["results"] and silent:
            raise UnavailableError(f"{self.name}: nothing found, and engines failed: {silent}")
        return self.rows(answer["results"], "url", "title", "content")
