"""A server's application in this process: opened, asked, and let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from searchrl.data.passages import Passage
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Retriever
from searchrl.serving.app import RetrieverApp
from searchrl.serving.settings import ServerSettings

PLACES = ("Arbon", "Bremgarten", "Chur", "Davos", "Engelberg")


def corpus() -> list[Passage]:
    """Five passages, each about its own place and all about lakes."""
    return [
        Passage(f"p{number}", place, f"{place} lies at lake number {number}.")
        for number, place in enumerate(PLACES)
    ]


def app(
    retriever: Retriever | None = None, key: str | None = None, **settings: Any
) -> RetrieverApp:
    """An application over ``retriever``, or over BM25 and the five passages."""
    opened = retriever or Bm25Retriever(corpus())
    return RetrieverApp(lambda _: opened, ServerSettings(**settings), key)


@asynccontextmanager
async def started(application: RetrieverApp) -> AsyncIterator[httpx2.AsyncClient]:
    """The application between its start and its stop, behind a client; the index may be closed."""
    said: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    heard: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    life = asyncio.ensure_future(application({"type": "lifespan"}, said.get, heard.put))
    await said.put({"type": "lifespan.startup"})
    assert (await heard.get())["type"] == "lifespan.startup.complete"
    transport = httpx2.ASGITransport(app=application)
    try:
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://localhost:8000"
        ) as client:
            yield client
    finally:
        await said.put({"type": "lifespan.shutdown"})
        assert (await heard.get())["type"] == "lifespan.shutdown.complete"
        await life


async def until_ready(client: httpx2.AsyncClient) -> None:
    """Wait until the index is open."""
    while (await client.get("/health/ready")).status_code != 200:
        await asyncio.sleep(0.002)


def ask(application: RetrieverApp, script: Callable[[httpx2.AsyncClient], Awaitable[Any]]) -> Any:
    """Run a script against the application once it is ready."""

    async def run() -> Any:
        async with asyncio.timeout(20), started(application) as client:
            await until_ready(client)
            return await script(client)

    return asyncio.run(run())


def ids(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """The ids in a result of ``/retrieve``, with scores or without."""
    return [[item.get("document", item)["id"] for item in row] for row in rows]
