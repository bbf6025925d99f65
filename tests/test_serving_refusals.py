"""The HTTP retriever in process: what it refuses, and who may ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from searchrl.serving.app import RetrieverApp
from searchrl.serving.settings import MAX_BODY, MAX_QUERIES, MAX_QUERY, MAX_TOPK
from tests.serving_fixtures import app, ask, ids

JSON = {"content-type": "application/json"}


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


def test_a_body_that_trickles_is_cut_off() -> None:
    async def script(client: httpx2.AsyncClient) -> int:
        async def body() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(5)

        return (await client.post("/retrieve", content=body(), headers=JSON)).status_code

    assert ask(app(body_seconds=0.02), script) == 408
