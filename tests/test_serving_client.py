"""The HTTP client: hits, or an error of the right kind, in bounded time."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import searchrl
from searchrl.data.passages import Passage
from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Hit
from searchrl.serving.answers import read_answer
from searchrl.serving.client import HitCache, HttpRetriever
from searchrl.serving.settings import MAX_BODY, MAX_QUERY
from searchrl.transport.breaker import SECONDS_OPEN
from searchrl.transport.errors import MalformedAnswerError, UnavailableError
from searchrl.transport.retry import TRIES
from tests.fake_time import run_fast
from tests.serving_fixtures import app, corpus, started, until_ready

URL = "http://retriever.test/retrieve"
Step = Callable[[httpx2.Request], httpx2.Response] | Exception


def good(request: httpx2.Request) -> httpx2.Response:
    """An answer with one hit a query, named after it."""
    asked = json.loads(request.content)
    rows = [
        [{"document": {"id": query, "contents": f'"{query}"\ntext'}, "score": 1.0}]
        for query in asked["queries"]
    ]
    return httpx2.Response(200, json={"result": rows})


def status(code: int, **headers: str) -> Step:
    return lambda _: httpx2.Response(code, headers=headers, text="why\nit failed")


class Script:
    """A server that follows a script; its last line repeats. An answer takes ``seconds``."""

    def __init__(self, *steps: Step, seconds: float = 0.0) -> None:
        self.requests: list[httpx2.Request] = []
        self._steps = steps
        self._seconds = seconds

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        step = self._steps[min(len(self.requests), len(self._steps) - 1)]
        self.requests.append(request)
        await asyncio.sleep(self._seconds)
        if isinstance(step, Exception):
            raise step
        return step(request)


def retriever(script: Callable[..., Any], **options: Any) -> HttpRetriever:
    return HttpRetriever(URL, transport=httpx2.MockTransport(script), **options)


def search(
    script: Script, queries: Sequence[str] = ("q",), **options: Any
) -> tuple[list[list[Hit]], float]:
    """What is found, and the seconds it took."""
    return run_fast(retriever(script, **options).search(queries, 3))


def failure(script: Script, kind: type[Exception], **options: Any) -> tuple[str, float]:
    """Why a search fails, and the seconds it took."""

    async def run() -> str:
        with pytest.raises(kind) as caught:
            await retriever(script, **options).search(["q"], 3)
        return str(caught.value)

    return run_fast(run())


TRANSIENT: dict[str, Step] = {
    "429 with Retry-After": status(429, **{"retry-after": "3"}),
    "408": status(408),
    "503": status(503),
    "refused": httpx2.ConnectError("connection refused"),
    "read timeout": httpx2.ReadTimeout("read timed out"),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_T_C01_what_may_pass_is_tried_again_and_passes(name: str) -> None:
    script = Script(TRANSIENT[name], good)
    [[hit]], _ = search(script)
    assert hit.passage == Passage("q", "q", "text")
    assert len(script.requests) == 2


@pytest.mark.parametrize("name", TRANSIENT)
def test_T_C01_four_tries_and_at_most_a_minute(name: str) -> None:
    script = Script(TRANSIENT[name], seconds=2.0)
    message, seconds = failure(script, UnavailableError)
    assert message.startswith(URL)
    assert len(script.requests) == TRIES == 4
    assert seconds <= 60


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"result": [[{"document"', "not JSON"),
        (b"<html><body>Welcome</body></html>", "not JSON"),
        (b"[]", "no JSON object"),
        (b'{"results": []}', "not a list of 1"),
        (b'{"result": {}}', "not a list of 1"),
        (b'{"result": []}', "not a list of 1"),
        (b'{"result": [[], []]}', "not a list of 1"),
        (b'{"result": [3]}', "not a list"),
        (b'{"result": [[3]]}', "neither an object nor a text"),
        (b'{"result": [[{"document": {"id": "a"}, "score": 1}]]}', 'neither "contents" nor "text"'),
        (b'{"result": [[{"document": {"id": [], "text": ""}, "score": 1}]]}', '"id"'),
        (b'{"result": [[{"document": "a", "score": "high"}]]}', "score"),
        (b'{"result": [[{"document": "a", "score": NaN}]]}', "score"),
        (b'{"result": [[{"document": "a", "score": null}]]}', "score"),
    ],
)
def test_T_C01_a_malformed_answer_fails_at_once(body: bytes, why: str) -> None:
    script = Script(lambda _: httpx2.Response(200, content=body))
    message, seconds = failure(script, MalformedAnswerError)
    assert why in message
    assert URL in message
    assert (len(script.requests), seconds) == (1, 0)


@pytest.mark.parametrize("code", [301, 400, 401, 403, 404, 413, 422])
def test_what_the_server_refuses_is_the_users_matter(code: int) -> None:
    script = Script(status(code))
    assert f"{URL} answers {code}: why it failed" in failure(script, InputError)[0]
    assert len(script.requests) == 1


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="url 'http://host:70000/r'"):
        HttpRetriever("http://host:70000/r")


def test_an_error_of_the_server_itself_is_infrastructure() -> None:
    assert "500: why it failed" in failure(Script(status(500)), UnavailableError)[0]
    assert issubclass(UnavailableError, InfrastructureError)
    assert issubclass(MalformedAnswerError, InfrastructureError)


def test_the_request_is_search_r1s_with_the_key_in_a_header() -> None:
    script = Script(good)
    search(script, ["who", "where"], key="canary-4711")
    [request] = script.requests
    assert json.loads(request.content) == {
        "queries": ["who", "where"], "topk": 3, "return_scores": True,
    }  # fmt: skip
    assert request.headers["authorization"] == "Bearer canary-4711"
    assert request.headers["content-type"] == "application/json"
    assert request.extensions["timeout"] == {"connect": 5, "read": 30, "write": 10, "pool": 5}


def test_each_query_is_asked_once_and_long_lists_in_parts() -> None:
    script = Script(good)
    queries = [f"q{number % 700}" for number in range(1_000)]
    found, _ = search(script, queries)
    assert [hits[0].passage.id for hits in found] == queries
    asked = [json.loads(request.content)["queries"] for request in script.requests]
    assert [len(part) for part in asked] == [512, 188]


def test_no_request_is_larger_than_a_server_takes() -> None:
    script = Script(good)
    queries = [f"{number} " + 'é"\\' * 1_300 for number in range(512)]
    found, _ = search(script, queries)
    assert [hits[0].passage.id for hits in found] == [query[:MAX_QUERY] for query in queries]
    sizes = [len(request.content) for request in script.requests]
    assert max(sizes) <= MAX_BODY
    assert sum(sizes) / len(sizes) > MAX_BODY / 2


def test_an_empty_answer_is_kept_too() -> None:
    script = Script(lambda _: httpx2.Response(200, json={"result": [[]]}))
    assert search(script, ["a", "a"])[0] == [[], []]

    async def twice() -> None:
        asked = retriever(script)
        assert await asked.search(["a"], 3) == await asked.search(["a"], 3) == [[]]

    run_fast(twice())
    assert len(script.requests) == 2


def test_queries_are_cut_and_cleaned_to_what_the_server_takes() -> None:
    script = Script(good)
    search(script, ["x" * 5_000, "half \ud800 pair"])
    assert json.loads(script.requests[0].content)["queries"] == ["x" * 4_096, "half ? pair"]


def test_an_answer_is_kept_for_the_same_query_and_k() -> None:
    script = Script(good)

    async def run() -> None:
        asked = retriever(script, cache=2)
        first = await asked.search(["a"], 3)
        first[0].clear()
        assert (await asked.search(["a"], 3))[0][0].passage.id == "a"
        assert len(script.requests) == 1
        await asked.search(["a"], 4)
        await asked.search(["b", "a"], 3)
        assert json.loads(script.requests[-1].content)["queries"] == ["b"]
        assert len(script.requests) == 3

    run_fast(run())


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=40), st.integers(0, 4)
)
def test_the_cache_keeps_the_most_recently_used(uses: list[tuple[str, bool]], size: int) -> None:
    cache, recent = HitCache(size), []
    for name, put in uses:
        key = (name, 1)
        if put:
            cache.put(key, [])
            recent = [*(other for other in recent if other != key), key][-size:] if size else []
        else:
            assert (cache.get(key) is not None) == (key in recent)
            recent.sort(key=lambda other, used=key: other == used)
    assert all(cache.get(key) is not None for key in recent)


@pytest.mark.parametrize("answered_before", [True, False])
def test_T_C04_an_outage_costs_time_and_nothing_else(answered_before: bool) -> None:
    """The client's part: forty searches while the server is down are all answered."""
    begins, ends = (5.0, 125.0) if answered_before else (0.0, 45.0)
    calls: list[float] = []

    def server(request: httpx2.Request) -> httpx2.Response:
        calls.append(asyncio.get_running_loop().time())
        if begins <= calls[-1] < ends:
            raise httpx2.ConnectError("connection refused")
        return good(request)

    async def run() -> list[list[list[Hit]]]:
        asked = retriever(server)
        if answered_before:
            await asked.search(["first"], 3)
            await asyncio.sleep(begins)
        return await asyncio.gather(*(asked.search([f"q{n}"], 3) for n in range(40)))

    found, seconds = run_fast(run())
    assert [rows[0][0].passage.id for rows in found] == [f"q{n}" for n in range(40)]
    assert ends <= seconds <= ends + SECONDS_OPEN + 5
    probes = [moment for moment in calls if begins + 1 < moment < ends]
    expected = (ends - begins) // SECONDS_OPEN
    assert expected - 1 <= len(probes) <= expected, "one every ten seconds, not forty callers"


def test_an_outage_longer_than_the_deadline_is_an_error() -> None:
    script = Script(httpx2.ConnectError("connection refused"))

    async def run() -> int:
        asked = retriever(script, seconds=25)
        for query in ("first", "second"):
            with pytest.raises(UnavailableError):
                await asked.search([query], 3)
        before = len(script.requests)
        with pytest.raises(UnavailableError, match=URL):
            await asked.search(["third"], 3)
        return len(script.requests) - before

    asked_in_vain, seconds = run_fast(run())
    assert asked_in_vain <= 3
    assert seconds < 60


def test_it_works_in_one_event_loop_after_another_and_leaves_nothing_open() -> None:
    closed = []

    class Transport(httpx2.MockTransport):
        async def aclose(self) -> None:
            closed.append("connections")

    asked = HttpRetriever(URL, transport=Transport(Script(good)))
    for number, name in enumerate("ab", start=1):
        [[hit]] = asyncio.run(asked.search([name], 1))
        assert hit.passage.id == name
        assert len(closed) == number


def test_over_the_real_application_it_is_the_index_itself() -> None:
    own = Bm25Retriever(corpus())
    queries = ["lake number 3", "Chur", "nothing of it", ""]

    async def run() -> list[list[Hit]]:
        application = app(own, key="canary-4711")
        async with started(application) as client:
            await until_ready(client)
            asked = HttpRetriever(
                "http://localhost/retrieve",
                "canary-4711",
                transport=httpx2.ASGITransport(app=application),
            )
            found = await asked.search(queries, 4)
            await asked.aclose()
            return found

    assert asyncio.run(run()) == asyncio.run(own.search(queries, 4))


@pytest.mark.parametrize(
    "item",
    [
        {"document": {"contents": '"A"\nb'}, "score": 2},
        {"document": {"contents": '"A"\nb'}},
        {"contents": '"A"\nb'},
        {"document": '"A"\nb'},
        '"A"\nb',
        {"document": {"id": 5, "title": "A", "text": "b", "extra": [1]}, "score": 2.0},
        {"document": {"_id": "5", "title": "A", "text": "b"}, "score": 2.0},
    ],
)
def test_the_forms_of_other_servers(item: Any) -> None:
    [[hit]] = read_answer({"result": [[item]]}, 1, 3, "server")
    assert (hit.passage.title, hit.passage.text) == ("A", "b")
    assert hit.score in (1.0, 2.0)
    assert hit.passage.id


def test_T_B04_repeated_passages_and_too_many_are_dropped() -> None:
    """As after Search-R1's server, which fills up with copies of the last document."""
    scores = [("b", 1.0), ("a", 1.0), ("c", 3.0), ("b", -3.4e38), ("d", 0.5)]
    row = [{"document": {"id": name, "text": ""}, "score": score} for name, score in scores]
    [hits] = read_answer({"result": [row]}, 1, 3, "server")
    assert [hit.passage.id for hit in hits] == ["c", "a", "b"]


def calls_without_timeout(source: str) -> list[int]:
    """Lines that send a request, or make what sends it, and name no timeout."""
    sending = {"AsyncClient", "Client", "post", "get", "request", "stream", "send", "urlopen"}
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = ast.unparse(node.func.value)
        outgoing = owner.endswith(("client", "httpx2", "requests", "session", "urllib.request"))
        if outgoing and node.func.attr in sending:
            named = {keyword.arg for keyword in node.keywords}
            if "timeout" not in named:
                lines.append(node.lineno)
    return lines


def test_T_C02_every_outgoing_call_has_a_timeout() -> None:
    package = Path(searchrl.__file__).parent
    assert calls_without_timeout("async def f(client):\n    await client.post('x')\n") == [2]
    assert calls_without_timeout("httpx2.AsyncClient(timeout=3)") == []
    found = {
        str(path.relative_to(package)): lines
        for path in package.rglob("*.py")
        if (lines := calls_without_timeout(path.read_text(encoding="utf-8")))
    }
    assert found == {}
