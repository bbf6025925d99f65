"""The HTTP retriever in process: while it opens, when it is late, when it fails, what it counts."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest

from searchrl.errors import InfrastructureError, InputError, IntegrityError
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Hit
from searchrl.serving.app import RetrieverApp
from searchrl.serving.http import Request
from searchrl.serving.settings import ServerSettings
from tests.serving_fixtures import app, ask, corpus, started


def test_T_B13_it_lives_before_the_index_is_open_and_says_how_far_that_is() -> None:
    go_on = threading.Event()

    def open_slowly(advance: Any) -> Bm25Retriever:
        advance(0.25)
        go_on.wait(10)
        return Bm25Retriever(corpus())

    async def script() -> None:
        async with started(RetrieverApp(open_slowly, ServerSettings())) as client:
            while (await client.get("/health/ready")).json()["progress"] == 0:
                await asyncio.sleep(0.002)
            ready = await client.get("/health/ready")
            assert ready.status_code == 503
            assert ready.json() == {"status": "opening", "progress": 0.25}
            assert (await client.get("/health/live")).json()["status"] == "live"
            early = await client.post("/retrieve", json={"queries": ["a"]})
            assert (early.status_code, early.headers["retry-after"]) == (503, "2")
            go_on.set()
            while (await client.get("/health/ready")).json()["status"] != "ready":
                await asyncio.sleep(0.002)
            assert (await client.post("/retrieve", json={"queries": ["a"]})).status_code == 200

    asyncio.run(script())


def test_an_index_that_cannot_be_opened_is_reported() -> None:
    reported: list[str] = []

    def fail(_: Any) -> Bm25Retriever:
        raise IntegrityError("index: damaged")

    async def script() -> None:
        application = RetrieverApp(
            fail, ServerSettings(), failed=lambda error: reported.append(str(error))
        )
        async with started(application) as client:
            while (await client.get("/health/ready")).json()["status"] == "opening":
                await asyncio.sleep(0.002)
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "failed")

    asyncio.run(script())
    assert reported == ["index: damaged"]


class HeldRetriever:
    """Answers when a test lets it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[list[str]] = []
        self.go_on = threading.Event()
        self._error = error

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append(list(queries))
        while not self.go_on.is_set():
            await asyncio.sleep(0.001)
        if self._error is not None:
            raise self._error
        return [[Hit(passage, 1.0) for passage in corpus()[:k]] for _ in queries]


def test_T_B08_an_overloaded_server_says_when_to_come_again() -> None:
    retriever = HeldRetriever()

    async def script(client: httpx2.AsyncClient) -> None:
        first = asyncio.ensure_future(client.post("/retrieve", json={"queries": ["a", "b"]}))
        while not retriever.calls:
            await asyncio.sleep(0.001)
        late = await client.post("/retrieve", json={"queries": ["c"]})
        assert late.status_code == 503
        assert int(late.headers["retry-after"]) >= 1
        retriever.go_on.set()
        assert (await first).status_code == 200
        assert (await client.post("/retrieve", json={"queries": ["c"]})).status_code == 200

    ask(app(retriever, capacity=2), script)


def test_T_B09_a_deadline_that_passes_is_a_504() -> None:
    retriever = HeldRetriever()

    async def script(client: httpx2.AsyncClient) -> None:
        response = await client.post("/retrieve", json={"queries": ["a"]})
        assert response.status_code == 504
        retriever.go_on.set()

    ask(app(retriever, seconds=0.02), script)


def test_what_the_web_service_refuses_is_said() -> None:
    class Refused:
        async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            raise InputError("BRAVE_API_KEY: the service refuses the key")

    async def script(client: httpx2.AsyncClient) -> None:
        response = await client.post("/retrieve", json={"queries": ["a"]})
        assert response.status_code == 500
        assert response.json() == {"detail": "BRAVE_API_KEY: the service refuses the key"}

    ask(app(Refused()), script)


def test_T_B09_the_client_may_name_its_deadline() -> None:
    async def seconds(value: str | None) -> float:
        async def receive() -> dict[str, Any]:
            raise AssertionError

        headers = [] if value is None else [(b"x-request-timeout", value.encode())]
        scope = {"type": "http", "method": "POST", "path": "/retrieve", "headers": headers}
        return Request(scope, receive).seconds_left(30.0)

    assert asyncio.run(seconds(None)) == pytest.approx(30, abs=0.5)
    assert asyncio.run(seconds("2.5")) == pytest.approx(2.5, abs=0.5)


def test_T_B09_who_hangs_up_is_taken_out_of_the_queue() -> None:
    retriever = HeldRetriever()
    application = app(retriever)
    sent: list[Any] = []

    async def hang_up(gone: asyncio.Event, query: str) -> None:
        body = [{"type": "http.request", "body": json.dumps({"queries": [query]}).encode()}]

        async def receive() -> dict[str, Any]:
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/retrieve", "headers": headers}
        await application(scope, receive, send)

    async def script(client: httpx2.AsyncClient) -> str:
        gone = asyncio.Event()
        running = asyncio.ensure_future(hang_up(gone, "running"))
        while not retriever.calls:
            await asyncio.sleep(0.001)
        waiting = asyncio.ensure_future(hang_up(gone, "waiting"))
        other = asyncio.ensure_future(client.post("/retrieve", json={"queries": ["other"]}))
        await asyncio.sleep(0.01)
        gone.set()
        async with asyncio.timeout(0.1):
            await asyncio.gather(running, waiting)
        retriever.go_on.set()
        assert (await other).status_code == 200
        return (await client.get("/metrics")).text

    text = ask(application, script)
    assert sent == []
    assert retriever.calls == [["running"], ["other"]]
    assert 'searchrl_requests_total{route="/retrieve",status="499"} 2.0' in text
    assert "searchrl_waiting_queries 0.0" in text


def test_a_failed_retriever_is_a_503() -> None:
    failing = HeldRetriever(InfrastructureError("upstream at host:1 is down"))
    failing.go_on.set()

    async def script(client: httpx2.AsyncClient) -> None:
        response = await client.post("/retrieve", json={"queries": ["a"]})
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert response.json()["detail"] == "upstream at host:1 is down"

    ask(app(failing), script)


def test_a_bug_is_a_500_that_tells_nothing_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = HeldRetriever(ZeroDivisionError("a bug"))
    broken.go_on.set()

    async def script(client: httpx2.AsyncClient) -> str:
        response = await client.post("/retrieve", json={"queries": ["a"]})
        assert (response.status_code, "a bug" in response.text) == (500, False)
        return (await client.get("/metrics")).text

    assert 'route="/retrieve",status="500"} 1.0' in ask(app(broken), script)
    assert "a bug" in caplog.text


def test_metrics_count_requests_queries_and_batches() -> None:
    async def script(client: httpx2.AsyncClient) -> str:
        await client.post("/retrieve", json={"queries": ["a", "b", "a"]})
        await client.post("/retrieve", json={"queries": 3})
        await client.get("/absent")
        await client.get("/also-absent")
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        return response.text

    text = ask(app(), script)
    for line in (
        'searchrl_requests_total{route="/retrieve",status="200"} 1.0',
        'searchrl_requests_total{route="/retrieve",status="422"} 1.0',
        'searchrl_requests_total{route="other",status="404"} 2.0',
        "searchrl_queries_total 3.0",
        "searchrl_batch_queries_sum 2.0",
        "searchrl_waiting_queries 0.0",
        "searchrl_ready_workers 1.0",
    ):
        assert line in text.splitlines()
    assert re.search(r'searchrl_request_seconds_count\{route="/retrieve"\} 2\.0', text)
