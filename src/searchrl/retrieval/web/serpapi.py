"""SerpAPI: Google's results as JSON. https://serpapi.com/search-api"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchrl.retrieval.web.provider import Provider, WebResult
from searchrl.transport.errors import UnavailableError
from searchrl.transport.keys import Credential
from searchrl.transport.service import Call

_PAGE = 10
_NOTHING = "hasn't returned any results"
"""How it says that a search found nothing: an error message beside status 200."""


class SerpApi(Provider):
    """Only organic results count; the answer box would be an answer and not a passage."""

    name = "serpapi"
    url = "https://serpapi.com"
    key_variable = "SERPAPI_API_KEY"

    def credential(self, key: str) -> Credential:
        """It takes the key in the query alone."""
        return Credential(key, "api_key", in_query=True)

    def call(self, query: str, page: int) -> Call:
        """Pages are counted in results."""
        return self.get("/search.json", {"engine": "google", "q": query, "start": page * _PAGE})

    def results(self, answer: Mapping[str, Any]) -> list[WebResult]:
        """See ``Provider.results``."""
        error = answer.get("error")
        if isinstance(error, str) and _NOTHING in error:
            return []
        if error is not None:
            raise UnavailableError(f"{self.name}: {error}")
        if "organic_results" not in answer:
            metadata = answer.get("search_metadata")
            status = metadata.get("status") if isinstance(metadata, dict) else None
            if status == "Success":
                return []
            raise self.malformed(f"no organic_results, and the search's status is {status!r}")
        return self.rows(answer["organic_results"], "link", "title", "snippet")
