"""What a page says about a query, in place of the service's snippet.

A page that may not be read, is gone, or is no text leaves the snippet in its place: that is the
page's answer, not a failure. Texts and lasting refusals are kept; what may pass is tried again the
next time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from weakref import WeakKeyDictionary

from searchrl.retrieval.web.extract import best_part, paragraphs
from searchrl.retrieval.web.fetch import Fetcher, PageError
from searchrl.retrieval.web.robots import Robots
from searchrl.transport.store import AnswerStore, answer_key

_log = logging.getLogger(__name__)


class PageReader:
    """Reads pages.

    Args:
        fetcher: fetches them.
        store: keeps what they say.
        characters: longest part of a page.
        concurrency: pages at a time.
    """

    def __init__(
        self, fetcher: Fetcher, store: AnswerStore, characters: int, concurrency: int
    ) -> None:
        self._fetcher = fetcher
        self._robots = Robots(fetcher)
        self._store = store
        self._characters = characters
        self._concurrency = concurrency
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    async def read(self, url: str, query: str, snippet: str) -> str:
        """The part of the page that says most of the query and the snippet, or the snippet."""
        known = await self._known(url)
        if (why := known.get("refused")) is not None:
            _log.info("%s is not read: %s", url, why)
            return snippet
        return best_part(known["paragraphs"], f"{query} {snippet}", self._characters) or snippet

    async def _known(self, url: str) -> dict[str, Any]:
        """The page's paragraphs, or why there are none."""
        key = answer_key(url, "page")
        if (known := self._store.get(key)) is not None:
            return known
        loop = asyncio.get_running_loop()
        async with self._slots.setdefault(loop, asyncio.Semaphore(self._concurrency)):
            try:
                found: dict[str, Any] = {"paragraphs": await self._paragraphs(url)}
            except PageError as error:
                found = {"refused": str(error)}
                if not error.lasting:
                    return found
        self._store.put(key, found)
        return found

    async def _paragraphs(self, url: str) -> list[str]:
        if not await self._robots.allow(url):
            raise PageError("the site's robots.txt forbids it", lasting=True)
        page = await self._fetcher.fetch(url)
        return await asyncio.to_thread(paragraphs, page)
