"""Brave Search, an index of its own. https://api-dashboard.search.brave.com"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from searchrl.retrieval.web.provider import Provider, WebResult
from searchrl.transport.keys import Credential
from searchrl.transport.service import Call

_WORDS = 50


class Brave(Provider):
    """Only web results count."""

    name = "brave"
    url = "https://api.search.brave.com/res/v1"
    key_variable = "BRAVE_API_KEY"
    max_query = 400

    def credential(self, key: str) -> Credential:
        """A header of its own."""
        return Credential(key, "X-Subscription-Token", scheme="")

    def call(self, query: str, page: int) -> Call:
        """The largest page, at the price of any; an offset counts pages."""
        words = " ".join(query.split()[:_WORDS])
        fields = {"q": words, "count": 20, "offset": page, "text_decorations": False}
        return self.get("/web/search", {**fields, "result_filter": "web"})

    def results(self, answer: Mapping[str, Any]) -> list[WebResult]:
        """See ``Provider.results``; titles and descriptions come with HTML's entities."""
        if answer.get("type") != "search":
            raise self.malformed(f"the answer's type is {answer.get('type')!r}, not 'search'")
        # A search that finds nothing on the web has no section for it.
        web = answer.get("web", {"results": []})
        if not isinstance(web, dict) or "results" not in web:
            raise self.malformed("the section web has no results")
        return [
            replace(found, title=html.unescape(found.title), snippet=html.unescape(found.snippet))
            for found in self.rows(web["results"], "url", "title", "description")
        ]
