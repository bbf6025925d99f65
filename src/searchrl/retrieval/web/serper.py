"""Serper: Google's results as JSON. https://serper.dev"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchrl.retrieval.web.provider import Provider, WebResult
from searchrl.transport.keys import Credential
from searchrl.transport.service import Call


class Serper(Provider):
    """Only organic results count."""

    name = "serper"
    url = "https://google.serper.dev"
    key_variable = "SERPER_API_KEY"

    def credential(self, key: str) -> Credential:
        """A header of its own."""
        return Credential(key, "X-API-KEY", scheme="")

    def call(self, query: str, page: int) -> Call:
        """Ten results a page; more of them would cost more."""
        return self.post("/search", {"q": query, "num": 10, "page": page + 1})

    def results(self, answer: Mapping[str, Any]) -> list[WebResult]:
        """See ``Provider.results``."""
        if "organic" not in answer:
            raise self.malformed("the answer has no field organic")
        return self.rows(answer["organic"], "link", "title", "snippet")
