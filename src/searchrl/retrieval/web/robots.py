"""Whether a site lets robots read a page, as its ``robots.txt`` says (RFC 9309)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from urllib.parse import urlsplit
from urllib.robotparser import RobotFileParser

from searchrl.retrieval.web.fetch import AGENT, Fetcher, PageError

_SITES = 10_000
_NAME = AGENT.partition("/")[0]


class Robots:
    """Asks every site once.

    Args:
        fetcher: reads the rules.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._rules: OrderedDict[str, RobotFileParser] = OrderedDict()
        self._asking: dict[str, asyncio.Lock] = {}

    async def allow(self, url: str) -> bool:
        """Whether the page at an address may be read.

        Raises:
            PageError: the site's rules could not be had for now.
        """
        site = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        lock = self._asking.setdefault(site, asyncio.Lock())
        try:
            async with lock:
                if site not in self._rules:
                    self._rules[site] = await self._ask(site)
        finally:
            self._asking.pop(site, None)
        while len(self._rules) > _SITES:
            self._rules.popitem(last=False)
        return self._rules[site].can_fetch(_NAME, url)

    async def _ask(self, site: str) -> RobotFileParser:
        rules = RobotFileParser()
        try:
            page = await self._fetcher.fetch(f"{site}/robots.txt")
        except PageError as error:
            if not error.lasting:
                raise
            rules.parse([])  # a site without rules has no objection
            return rules
        rules.parse(page.body.decode("utf-8", "replace").splitlines())
        return rules
