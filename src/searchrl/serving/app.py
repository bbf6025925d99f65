"""The HTTP retriever: its operations, as an ASGI application.

One application serves one index in one process. It lives before the index is open and says how far
that is; a search is refused with a status that tells a client what to do, never left hanging; and
one that nobody waits for any more, because the client hung up or its deadline passed, is taken out
of the queue.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import msgspec
from msgspec import Struct

from searchrl.data.passages import Passage
from searchrl.errors import InfrastructureError, InputError, SearchRLError
from searchrl.retrieval.protocol import Hit
from searchrl.serving import wire
from searchrl.serving.application import Application, Exchange
from searchrl.serving.backend import Backend, Open, OpenReader
from searchrl.serving.batching import Batcher, OverloadedError
from searchrl.serving.gate import Route
from searchrl.serving.http import RefusedError, Reply, Request, come_again
from searchrl.serving.metrics import CONTENT_TYPE, Metrics
from searchrl.serving.openapi import describe
from searchrl.serving.settings import MAX_BODY, MAX_PAIRS, ServerSettings

_SECONDS_TO_OPEN = 2
"""When a client that came before the index was open should come again."""

_Body = TypeVar("_Body", bound=Struct)

_retrieve_decoder = msgspec.json.Decoder(wire.RetrieveRequest)
_rerank_decoder = msgspec.json.Decoder(wire.RerankRequest)
_search_decoder = msgspec.json.Decoder(wire.SearchRequest)


class RetrieverApp(Application):
    """Serves one retriever.

    Args:
        open_retriever: opens the index; called once, in a thread of its own.
        settings: what depends on the machine.
        key: the API key; ``None`` answers everybody.
        failed: told why the index could not be opened.
        open_reader: loads the cross-encoder behind ``/rerank``; ``None`` for a server without.
        index: what is served, for ``/v1/index``; ``None`` where it is no index of this machine.
    """

    def __init__(
        self,
        open_retriever: Open,
        settings: ServerSettings,
        key: str | None = None,
        failed: Callable[[SearchRLError], None] = lambda _: None,
        open_reader: OpenReader | None = None,
        index: wire.ServedIndex | None = None,
    ) -> None:
        self._index = index
        super().__init__(self._routes(open_reader is not None), settings.allowed_hosts, key)
        self._settings = settings
        self._metrics = Metrics()
        self._backend = Backend(open_retriever, self._metrics.ready, failed, open_reader)
        self._reranking = 0
        self._batcher = Batcher(self._backend, settings.capacity, settings.batch, self._metrics)
        self._description = json.dumps(describe(self.routes, guarded=key is not None)).encode()

    def _routes(self, reranks: bool) -> Sequence[Route]:
        health = (wire.Health,)
        rerank = Route(
            "POST",
            "/rerank",
            self._rerank,
            "Order passages anew, in Search-R1's form.",
            {200: (wire.ScoredAnswer, wire.PlainAnswer)},
            body=wire.RerankRequest,
        )
        index = Route("GET", "/v1/index", self._tell, "What is served.", {200: (wire.ServedIndex,)})
        return (
            Route("POST", "/retrieve", self._retrieve, "Search, in Search-R1's form.",
                  {200: (wire.ScoredAnswer, wire.PlainAnswer)}, body=wire.RetrieveRequest),
            Route("POST", "/v1/search", self._search, "Search.",
                  {200: (wire.SearchAnswer,)}, body=wire.SearchRequest),
            *((rerank,) if reranks else ()),
            *(() if self._index is None else (index,)),
            Route("GET", "/health/live", self._live, "Whether the process runs.",
                  {200: health}, open=True),
            Route("GET", "/health/ready", self._ready, "Whether the index is open.",
                  {200: health, 503: health}, open=True),
            Route("GET", "/metrics", self._measure, "Counts, in Prometheus's text form.",
                  {200: ()}, content_type=CONTENT_TYPE),
            Route("GET", "/openapi.json", self._describe, "This document.", {200: ()}),
        )  # fmt: skip

    def start(self) -> None:
        """Open the index, in a thread of its own."""
        self._backend.start()

    async def stop(self) -> None:
        """Let go of the index."""
        self._backend.stop()

    def refusal(self, error: RefusedError) -> Reply:
        """The reason, in one line."""
        return Reply.of(wire.Refusal(error.detail), error.status, error.headers)

    def observed(self, route: str) -> AbstractContextManager[Exchange]:
        """Count and time one request."""
        return self._metrics.exchange(route)

    async def _retrieve(self, request: Request) -> Reply:
        asked = await self._read(request, _retrieve_decoder)
        queries = [asked.queries] if isinstance(asked.queries, str) else asked.queries
        hits = await self._hits(request, queries, wire.limit(asked))
        return Reply.of(wire.retrieve_answer(hits, asked.return_scores))

    async def _search(self, request: Request) -> Reply:
        asked = await self._read(request, _search_decoder)
        k = None if asked.k is None else int(asked.k)
        return Reply.of(wire.search_answer(await self._hits(request, asked.queries, k)))

    async def _rerank(self, request: Request) -> Reply:
        asked = await self._read(request, _rerank_decoder)
        queries = [asked.queries] if isinstance(asked.queries, str) else asked.queries
        if len(queries) != len(asked.documents):
            raise RefusedError(422, "documents: expected one list a query - at `$.documents`")
        try:
            candidates = wire.candidates(asked)
        except ValueError as error:
            raise RefusedError(422, f"{error} - at `$.documents`") from None
        hits = await self._reread(request, queries, candidates)
        k = self._settings.topk if asked.rerank_topk is None else int(asked.rerank_topk)
        return Reply.of(wire.retrieve_answer([own[:k] for own in hits], asked.return_scores))

    async def _tell(self, _: Request) -> Reply:
        self._refuse_unopened()
        assert self._index is not None, "there is no such route without it"
        return Reply.of(self._index)

    async def _live(self, _: Request) -> Reply:
        return Reply.of(wire.Health("live"))

    async def _ready(self, _: Request) -> Reply:
        status = self._backend.status
        answer = wire.Health(status, round(self._backend.progress, 3))
        return Reply.of(answer, 200 if status == "ready" else 503)

    async def _measure(self, _: Request) -> Reply:
        return Reply(200, self._metrics.text(), CONTENT_TYPE)

    async def _describe(self, _: Request) -> Reply:
        return Reply(200, self._description)

    async def _read(self, request: Request, decoder: msgspec.json.Decoder[_Body]) -> _Body:
        """The request's body, checked.

        Raises:
            RefusedError: it is not JSON (400), or not what this route takes (422).
        """
        body = await request.json_body(MAX_BODY, self._settings.body_seconds)
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            raise RefusedError(422, str(error)) from None
        except ValueError as error:
            raise RefusedError(400, str(error)) from None

    async def _hits(
        self, request: Request, queries: Sequence[str], k: int | None
    ) -> list[list[Hit]]:
        """What the retriever finds, for as long as the client waits.

        Raises:
            RefusedError: no index yet, no room, or a failed retriever (503), too late (504), or the
                server was set up with what its own service refuses, a key most often (500).
            ClientGoneError: the client hung up.
        """
        seconds = request.seconds_left(self._settings.seconds)
        self._refuse_unopened()
        k = k or self._settings.topk
        try:
            found = self._batcher.find(queries, k)
            if found is None:
                return await request.unless_gone(self._submit(queries, k), seconds)
            self._metrics.admitted(len(queries))
            return found
        except InputError as error:
            raise RefusedError(500, str(error)) from error
        except InfrastructureError as error:
            raise come_again(str(error), _SECONDS_TO_OPEN) from error
        except TimeoutError:
            raise RefusedError(504, "the deadline passed before the search was done") from None

    async def _reread(
        self, request: Request, queries: Sequence[str], candidates: Sequence[Sequence[Passage]]
    ) -> list[list[Hit]]:
        """The candidates in their new order, for as long as the client waits.

        Raises:
            RefusedError: too many pairs or too long a query (422), no room or no model yet (503),
                or too late (504).
            ClientGoneError: the client hung up.
        """
        pairs = sum(map(len, candidates))
        if pairs > MAX_PAIRS:
            raise RefusedError(422, f"documents: at most {MAX_PAIRS} - at `$.documents`")
        if self._reranking and self._reranking + pairs > self._settings.capacity:
            raise come_again("too many documents are waiting", 1)
        seconds = request.seconds_left(self._settings.seconds)
        self._reranking += pairs
        try:
            return await request.unless_gone(self._backend.rerank(queries, candidates), seconds)
        except InputError as error:
            raise RefusedError(422, str(error)) from error
        except InfrastructureError as error:
            raise come_again(str(error), _SECONDS_TO_OPEN) from error
        except TimeoutError:
            raise RefusedError(504, "the deadline passed before they were read") from None
        finally:
            self._reranking -= pairs

    def _submit(self, queries: Sequence[str], k: int) -> asyncio.Future[list[list[Hit]]]:
        try:
            answer = self._batcher.submit(queries, k)
        except OverloadedError as error:
            raise come_again(str(error), error.retry_after) from None
        self._metrics.admitted(len(queries))
        return answer

    def _refuse_unopened(self) -> None:
        if self._backend.status != "ready":
            raise come_again("the index is not open yet; see /health/ready", _SECONDS_TO_OPEN)
