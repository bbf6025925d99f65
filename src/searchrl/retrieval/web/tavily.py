"""Tavily, a search service for language models. https://docs.tavily.com"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchrl.retrieval.web.provider import Provider, WebResult
from searchrl.transport.keys import Credential
from searchrl.transport.service import Call


class Tavily(Provider):
    """Its snippets are the parts of the page that fit the query best; there is one page of them."""

    name = "tavily"
    url = "https://api.tavily.com"
    key_variable = "TAVILY_API_KEY"
    max_query = 400
    pages = 1
    # 432 and 433: the plan, or the limit set for paying by use, is used up.
    refusals = Provider.refusals | {432, 433}

    def credential(self, key: str) -> Credential:
        """A bearer token."""
        return Credential(key)

    def call(self, query: str, page: int) -> Call:
        """The most results there are, at the price of any."""
        return self.post("/search", {"query": query, "max_results": 20, "search_depth": "basic"})

    def results(self, answer: Mapping[str, Any]) -> list[WebResult]:
        """See ``Provider.results``."""
        if "results" not in answer:
            raise self.malformed("the answer has no field results")
        return self.rows(answer["results"], "url", "title", "content")
