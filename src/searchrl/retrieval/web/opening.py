"""A recipe's search on the web, opened: which provider, which key, where answers are kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.retrieval.web.brave import Brave
from searchrl.retrieval.web.fetch import Fetcher
from searchrl.retrieval.web.google import Google
from searchrl.retrieval.web.options import WebOptions
from searchrl.retrieval.web.pages import PageReader
from searchrl.retrieval.web.provider import Provider
from searchrl.retrieval.web.retriever import WebRetriever
from searchrl.retrieval.web.searxng import SearXng
from searchrl.retrieval.web.serpapi import SerpApi
from searchrl.retrieval.web.serper import Serper
from searchrl.retrieval.web.tavily import Tavily
from searchrl.transport.keys import read_key
from searchrl.transport.service import Patience, Service
from searchrl.transport.store import AnswerStore

if TYPE_CHECKING:
    import httpx2

_PROVIDERS: Mapping[str, type[Provider]] = {
    kind.name: kind for kind in (SerpApi, Serper, Brave, Tavily, SearXng)
}
_log = logging.getLogger(__name__)


def open_web(
    options: WebOptions,
    cache: Path,
    transport: httpx2.AsyncBaseTransport | None = None,
    fetcher: Fetcher | None = None,
) -> WebRetriever:
    """The retriever that a recipe names; nothing is asked yet.

    Args:
        options: the recipe's.
        cache: where answers are kept, unless the recipe says.
        transport: stands in for the network in tests.
        fetcher: fetches pages, for tests.

    Raises:
        InputError: the variable that should hold the key does not.
    """
    provider = _provider(options)
    if provider.notice is not None:
        _log.warning(provider.notice)
    key = web_key(options)
    service = Service(
        options.url or provider.url,
        None if key is None else provider.credential(key),
        Patience(deadline=options.seconds, outage=options.outage, repeat_slow=True),
        options.concurrency,
        options.per_second,
        provider.refusals,
        transport=transport,
    )
    store = AnswerStore(options.cache or cache)
    reader = None
    if options.read_pages:
        reader = PageReader(
            fetcher or Fetcher(), store, options.page_characters, options.concurrency
        )
    return WebRetriever(provider, service, store, reader, options.max_requests)


def web_key(options: WebOptions) -> str | None:
    """The key that the provider asks for, ``None`` where it asks for none.

    Raises:
        InputError: the variable that should hold it does not.
    """
    variable = options.key_variable or _provider(options).key_variable
    return read_key(variable, "retriever.key_variable")


def _provider(options: WebOptions) -> Provider:
    extra = options.extra or {}
    if options.provider == "google":
        assert options.engine_id is not None, "the options are checked"
        return Google(extra, options.engine_id)
    return _PROVIDERS[options.provider](extra)
