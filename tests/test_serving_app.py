"""The HTTP retriever in process: what it answers, what it refuses, and who may ask."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import pytest

from searchrl.data.passages import Passage
from searchrl.errors import InfrastructureError, IntegrityError
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Hit
from searchrl.serving.app import RetrieverApp
from searchrl.serving.http import Request
from searchrl.serving.settings import (
    MAX_BODY,
    MAX_QUERIES,
    MAX_QUERY,
    MAX_TOPK,
    ServerSettings,
)
from tests.serving_fixtures import app, ask, corpus, started

JSON = {"content-type": "application/json"}


def posted(body: Any, path: str = "/retrieve", application: RetrieverApp | None = None) -> Any:
    """The answer to one request that has to succeed."""

    async def script(client: httpx2.AsyncClient) -> Any:
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    return ask(application or app(), script)


def ids(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    return [[item.get("document", item)["id"] for item in row] for row in rows]


def test_topk_left_out_is_the_servers_own() -> None:
    for asked in ({}, {"topk": None}):
        [row] = posted({"queries": ["lake"], **asked}, application=app(topk=2))["result"]
        assert len(row) == 2


def test_queries_may_be_one_text_many_or_none() -> None:
    assert ids(posted({"queries": "Chur", "topk": 1})["result"]) == [["p2"]]
    assert ids(posted({"queries": ["Davos", "Chur"], "topk": 1})["result"]) == [["p3"], ["p2"]]
    assert posted({"queries": []}) == {"result": []}


def test_without_scores_come_documents_for_any_number_of_queries() -> None:
    for count in (1, 2, 3):
        rows = posted({"queries": ["Chur"] * count, "topk": 2, "return_scores": False})["result"]
        assert [len(row) for row in rows] == [2] * count
        assert {key for row in rows for item in row for key in item} == {
            "id", "contents", "title", "text",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"topk_retrieval": 4, "topk_rerank": 2}, 2),
        ({"topk_retrieval": 2, "topk_rerank": 4}, 2),
        ({"topk_retrieval": 4}, 4),
        ({"topk": 1, "topk_retrieval": 4, "topk_rerank": 2}, 1),
        ({"topk": 2.0}, 2),
    ],
)
def test_the_smallest_limit_given_counts(limits: dict[str, float], expected: int) -> None:
    [row] = posted({"queries": ["lake"], **limits})["result"]
    assert len(row) == expected


def test_the_other_form_answers_the_same_passages() -> None:
    body = posted({"queries": ["Chur", "lake"], "k": 2}, "/v1/search")
    assert [[found["id"] for found in row] for row in body["results"]] == ids(
        posted({"queries": ["Chur", "lake"], "topk": 2})["result"]
    )
    assert set(body["results"][0][0]) == {"id", "title", "text", "score"}


def test_T_B04_as_many_passages_as_there_are_distinct_and_in_order() -> None:
    [row] = posted({"queries": ["nothing of this"], "topk": 100, "return_scores": True})["result"]
    assert ids([row]) == [["p0", "p1", "p2", "p3", "p4"]]
    assert [item["score"] for item in row] == [0.0] * 5


def test_half_a_surrogate_pair_in_a_passage_is_escaped() -> None:
    application = app(Bm25Retriever([Passage("p", "A", "half \ud800 of it")]))
    [[item]] = posted({"queries": ["half"]}, application=application)["result"]
    assert item["text"] == "half \ud800 of it"


def big(size: int) -> bytes:
    return b'{"queries": ["' + b"x" * size + b'"]}'


HOSTILE: list[tuple[str, bytes, dict[str, str], int]] = [
    ("topk -1", b'{"queries": ["a"], "topk": -1}', JSON, 422),
    ("topk 0", b'{"queries": ["a"], "topk": 0}', JSON, 422),
    ("topk 101", b'{"queries": ["a"], "topk": 101}', JSON, 422),
    ("topk 1e9", b'{"queries": ["a"], "topk": 1000000000}', JSON, 422),
    ("topk 1e400", b'{"queries": ["a"], "topk": 1e400}', JSON, 422),
    ("topk 2.5", b'{"queries": ["a"], "topk": 2.5}', JSON, 422),
    ("topk text", b'{"queries": ["a"], "topk": "3"}', JSON, 422),
    ("topk true", b'{"queries": ["a"], "topk": true}', JSON, 422),
    ("topk list", b'{"queries": ["a"], "topk": [3]}', JSON, 422),
    ("topk huge integer", b'{"queries": ["a"], "topk": ' + b"9" * 5000 + b"}", JSON, 422),
    ("topk NaN", b'{"queries": ["a"], "topk": NaN}', JSON, 400),
    ("topk_rerank 0", b'{"queries": ["a"], "topk_rerank": 0}', JSON, 422),
    ("scores text", b'{"queries": ["a"], "return_scores": "yes"}', JSON, 422),
    ("scores number", b'{"queries": ["a"], "return_scores": 1}', JSON, 422),
    ("no queries", b"{}", JSON, 422),
    ("queries null", b'{"queries": null}', JSON, 422),
    ("queries number", b'{"queries": 3}', JSON, 422),
    ("queries of null", b'{"queries": [null]}', JSON, 422),
    ("queries of lists", b'{"queries": [["a"]]}', JSON, 422),
    ("queries object", b'{"queries": {"a": "b"}}', JSON, 422),
    ("unknown key", b'{"queries": ["a"], "nprobe": 1}', JSON, 422),
    ("513 queries", json.dumps({"queries": ["a"] * 513}).encode(), JSON, 422),
    ("4,097 characters", big(4_097), JSON, 422),
    ("4,097 wide characters", ('{"queries": "' + "é" * 4_097 + '"}').encode(), JSON, 422),
    ("a list", b"[]", JSON, 422),
    ("a text", b'"queries"', JSON, 422),
    ("null", b"null", JSON, 422),
    ("deep lists", b'{"queries": ' + b"[" * 200_000, JSON, 422),
    ("deep objects", b'{"x":' * 100_000, JSON, 422),
    ("nothing", b"", JSON, 400),
    ("blank", b"   ", JSON, 400),
    ("half", b'{"queries": ["a"', JSON, 400),
    ("two values", b'{"queries": ["a"]} {}', JSON, 400),
    ("single quotes", b"{'queries': ['a']}", JSON, 400),
    ("HTML", b"<html></html>", JSON, 400),
    ("not UTF-8", b'{"queries": ["\xff"]}', JSON, 400),
    ("UTF-16", '{"queries": ["a"]}'.encode("utf-16"), JSON, 400),
    ("half a surrogate pair", b'{"queries": ["\\ud800"]}', JSON, 400),
    ("a raw control character", b'{"queries": ["\x00"]}', JSON, 400),
    ("1 MiB and a byte", big(MAX_BODY), JSON, 413),
    ("20 MB", big(20_000_000), JSON, 413),
    ("a form", b"queries=a", {"content-type": "application/x-www-form-urlencoded"}, 415),
    ("plain text", b'{"queries": ["a"]}', {"content-type": "text/plain"}, 415),
    ("no type", b'{"queries": ["a"]}', {}, 415),
    ("gzip", b"\x1f\x8b", {**JSON, "content-encoding": "gzip"}, 415),
    ("deadline 0", b'{"queries": ["a"]}', {**JSON, "x-request-timeout": "0"}, 422),
    ("deadline nan", b'{"queries": ["a"]}', {**JSON, "x-request-timeout": "nan"}, 422),
    ("deadline 1e9", b'{"queries": ["a"]}', {**JSON, "x-request-timeout": "1e9"}, 422),
    ("deadline text", b'{"queries": ["a"]}', {**JSON, "x-request-timeout": "soon"}, 422),
]


def test_T_B02_hostile_requests_are_refused_in_one_line_and_the_next_is_served() -> None:
    assert len(HOSTILE) >= 40

    async def script(client: httpx2.AsyncClient) -> list[str]:
        wrong = []
        for name, body, headers, expected in HOSTILE:
            for path in ("/retrieve", "/v1/search"):
                if path == "/v1/search" and ("topk" in name or "scores" in name):
                    continue
                response = await client.post(path, content=body, headers=headers)
                one_line = "\n" not in response.json()["detail"]
                if response.status_code != expected or not one_line:
                    wrong.append(f"{name}: {response.status_code} {response.text[:200]}")
        good = await client.post("/retrieve", json={"queries": ["Chur"], "topk": 1})
        assert ids(good.json()["result"]) == [["p2"]]
        return wrong

    assert ask(app(), script) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"queries": ["\\u0000"], "topk": 1}', 1),
        (b'{"queries": [""], "topk": 1}', 1),
        (b'{"queries": ["a"], "queries": ["a", "b"], "topk": 1}', 2),
        (json.dumps({"queries": ["x" * MAX_QUERY], "topk": MAX_TOPK}).encode(), 1),
        (json.dumps({"queries": ["a"] * MAX_QUERIES, "topk": 1}).encode(), MAX_QUERIES),
    ],
)
def test_odd_requests_that_are_none_the_less_right(body: bytes, expected: int) -> None:
    async def script(client: httpx2.AsyncClient) -> int:
        response = await client.post("/retrieve", content=body, headers=JSON)
        assert response.status_code == 200
        return len(response.json()["result"])

    assert ask(app(), script) == expected


def test_a_large_body_is_not_read_to_its_end() -> None:
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1_000):
            taken += 1
            yield b" " * 65_536

    async def script(client: httpx2.AsyncClient) -> int:
        return (await client.post("/retrieve", content=body(), headers=JSON)).status_code

    assert ask(app(), script) == 413
    assert taken <= MAX_BODY // 65_536 + 1


def test_T_B03_the_limits_are_in_the_openapi_document() -> None:
    async def script(client: httpx2.AsyncClient) -> Any:
        return (await client.get("/openapi.json")).json()

    document = ask(app(), script)
    schemas = document["components"]["schemas"]
    asked = schemas["RetrieveRequest"]
    assert asked["additionalProperties"] is False
    several, one = asked["properties"]["queries"]["anyOf"]
    assert several["maxItems"] == MAX_QUERIES == 512
    assert several["items"]["maxLength"] == one["maxLength"] == MAX_QUERY == 4_096
    numbers = [asked["properties"][name]["anyOf"] for name in ("topk", "topk_rerank")]
    numbers.append(schemas["SearchRequest"]["properties"]["k"]["anyOf"])
    for choices in numbers:
        [number] = [choice for choice in choices if choice["type"] == "number"]
        assert (number["minimum"], number["maximum"], number["multipleOf"]) == (1, MAX_TOPK, 1)
    post = document["paths"]["/retrieve"]["post"]
    assert str(MAX_BODY) in post["responses"]["413"]["description"]
    assert post["parameters"][0]["schema"] == {"type": "number", "minimum": 1.0, "maximum": 300.0}
    assert "Retry-After" in post["responses"]["503"]["headers"]


def request_to(application: RetrieverApp, method: str, path: str, **headers: str) -> int:
    async def script(client: httpx2.AsyncClient) -> int:
        response = await client.request(method, path, headers=headers)
        return response.status_code

    return int(ask(application, script))


def test_what_there_is_not_is_said() -> None:
    async def script(client: httpx2.AsyncClient) -> None:
        absent = await client.get("/docs")
        assert absent.status_code == 404
        assert "/retrieve" in absent.json()["detail"]
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            response = await client.request(method, "/retrieve")
            assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert (await client.post("/metrics")).headers["allow"] == "GET"

    ask(app(), script)


KEY = "canary-4711"


def test_T_B10_every_route_but_health_asks_for_the_key() -> None:
    application = app(key=KEY)
    assert {route.path for route in application.routes if route.open} == {
        "/health/live", "/health/ready",
    }  # fmt: skip

    async def script(client: httpx2.AsyncClient) -> None:
        for route in application.routes:
            status = {}
            for name, headers in (
                ("none", {}),
                ("wrong", {"authorization": "Bearer canary-4712"}),
                ("other scheme", {"authorization": f"Basic {KEY}"}),
                ("no scheme", {"authorization": KEY}),
                ("no key", {"authorization": "Bearer"}),
                ("longer", {"authorization": f"Bearer {KEY}1"}),
                ("not ASCII", {"authorization": "Bearer \xff"}),
                ("right", {"authorization": f"Bearer {KEY}"}),
            ):
                encoded = {key: value.encode("latin-1") for key, value in headers.items()}
                response = await client.request(route.method, route.path, headers=encoded)
                status[name] = response.status_code
                assert KEY not in response.text
            if route.open:
                assert set(status.values()) == {200}, route.path
            else:
                none = {status[name] for name in ("none", "other scheme", "no scheme", "no key")}
                wrong = {status[name] for name in ("wrong", "longer", "not ASCII")}
                assert (none, wrong) == ({401}, {403}), route.path
                # Past the gate, a search without a body is only a wrong search.
                assert status["right"] == (200 if route.body is None else 415), route.path
        # What does not exist is no way to find out what does.
        assert (await client.get("/docs")).status_code == 401

    ask(application, script)


def test_T_B10_the_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(
        "searchrl.serving.gate.hmac.compare_digest", lambda *pair: compared.append(pair) or True
    )
    assert request_to(app(key=KEY), "GET", "/metrics", authorization="Bearer guess") == 200
    assert compared == [(b"guess", KEY.encode())]


def test_T_B11_another_host_name_is_misdirected() -> None:
    for host, expected in (
        ("localhost", 200), ("127.0.0.1:8000", 200), ("[::1]:9", 200), ("LOCALHOST:1", 200),
        ("example.org", 421), ("localhost.example.org", 421), ("", 421), ("10.0.0.1:8000", 421),
    ):  # fmt: skip
        assert request_to(app(), "GET", "/health/live", host=host) == expected, host
    assert request_to(app(allowed_hosts=()), "GET", "/health/live", host="any.org") == 200


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


def test_a_body_that_trickles_is_cut_off() -> None:
    async def script(client: httpx2.AsyncClient) -> int:
        async def body() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(5)

        return (await client.post("/retrieve", content=body(), headers=JSON)).status_code

    assert ask(app(body_seconds=0.02), script) == 408


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


def test_T_B06_alone_in_a_batch_and_among_32_clients() -> None:
    passages = [
        Passage(f"p{n}", f"Title {n % 7}", " ".join(f"w{n * k % 11}" for k in range(9)))
        for n in range(60)
    ]
    queries = [f"w{n} w{n * 3 % 11} title {n % 7}" for n in range(64)]
    retriever = Bm25Retriever(passages)

    async def script(client: httpx2.AsyncClient) -> None:
        async def found(part: list[str]) -> list[Any]:
            body = {"queries": part, "topk": 5, "return_scores": True}
            return list((await client.post("/retrieve", json=body)).json()["result"])

        alone = [(await found([query]))[0] for query in queries]
        assert await found(queries) == alone
        together = await asyncio.gather(*(found([query]) for query in queries[:32]))
        assert [rows[0] for rows in together] == alone[:32]

    ask(app(retriever), script)
