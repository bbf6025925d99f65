"""The HTTP client: hits, or an error of the right kind, in bounded time."""

from __future__ import annotations

import ast
import asyncio
import json
import random
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
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
from searchrl.serving.answers import MalformedAnswerError, read_answer
from searchrl.serving.breaker import SECONDS_OPEN
from searchrl.serving.client import Clock, HitCache, HttpRetriever, UnavailableError
from searchrl.serving.retry import TRIES, pause, seconds_asked
from searchrl.serving.settings import MAX_BODY, MAX_QUERY
from tests.serving_fixtures import app, corpus, started, until_ready

URL = "http://retriever.test/retrieve"
Step = Callable[[httpx2.Request], httpx2.Response] | Exception


class FakeTime:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


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
    """A server that follows a script; its last line repeats."""

    def __init__(self, *steps: Step, time: FakeTime | None = None, seconds: float = 0.0) -> None:
        self.requests: list[httpx2.Request] = []
        self._steps = steps
        self._time = time
        self._seconds = seconds

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        step = self._steps[min(len(self.requests), len(self._steps) - 1)]
        self.requests.append(request)
        if self._time is not None:
            self._time.now += self._seconds
        if isinstance(step, Exception):
            raise step
        return step(request)


def search(
    script: Script, time: FakeTime, queries: Sequence[str] = ("q",), **options: Any
) -> list[list[Hit]]:
    async def run() -> list[list[Hit]]:
        transport = httpx2.MockTransport(script)
        retriever = HttpRetriever(URL, transport=transport, clock=time.clock, **options)
        try:
            return await retriever.search(queries, 3)
        finally:
            await retriever.aclose()

    return asyncio.run(run())


TRANSIENT: dict[str, Step] = {
    "429 with Retry-After": status(429, **{"retry-after": "3"}),
    "503": status(503),
    "502": status(502),
    "504": status(504),
    "refused": httpx2.ConnectError("connection refused"),
    "reset": httpx2.ReadError("connection reset"),
    "read timeout": httpx2.ReadTimeout("read timed out"),
    "pool timeout": httpx2.PoolTimeout("no connection"),
    "badly packed": httpx2.DecodingError("invalid gzip"),
    "cut off": httpx2.RemoteProtocolError("peer closed the connection mid-body"),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_T_C01_what_may_pass_is_tried_again_and_passes(name: str) -> None:
    time, script = FakeTime(), Script(TRANSIENT[name], good)
    [[hit]] = search(script, time)
    assert hit.passage == Passage("q", "q", "text")
    assert len(script.requests) == 2
    assert len(time.sleeps) == 1


@pytest.mark.parametrize("name", TRANSIENT)
def test_T_C01_four_tries_and_at_most_a_minute(name: str) -> None:
    time = FakeTime()
    script = Script(TRANSIENT[name], time=time, seconds=2.0)
    with pytest.raises(UnavailableError, match=URL):
        search(script, time)
    assert len(script.requests) == TRIES == 4
    assert time.now <= 60


def test_T_C01_slow_failures_end_at_the_deadline() -> None:
    time = FakeTime()
    script = Script(httpx2.ReadTimeout("read timed out"), time=time, seconds=30.0)
    with pytest.raises(UnavailableError, match="ReadTimeout"):
        search(script, time)
    assert len(script.requests) == 2
    assert time.now <= 61


def test_T_C01_retry_after_is_honoured_unless_it_is_past_the_deadline() -> None:
    time = FakeTime()
    search(Script(status(503, **{"retry-after": "20"}), good), time)
    assert time.now >= 20
    time, script = FakeTime(), Script(status(503, **{"retry-after": "3600"}), good)
    with pytest.raises(UnavailableError, match="503"):
        search(script, time)
    assert (time.now, len(script.requests)) == (0, 1)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"result": [[{"document"', "no JSON"),
        (b"<html><body>Welcome</body></html>", "no JSON"),
        (b"[]", "no JSON"),
        (b'{"results": []}', "no JSON"),
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
        (b'{"result": ' + b"[" * 100_000, "no JSON"),
    ],
)
def test_T_C01_a_malformed_answer_fails_at_once(body: bytes, why: str) -> None:
    time, script = FakeTime(), Script(lambda _: httpx2.Response(200, content=body))
    with pytest.raises(MalformedAnswerError, match=why) as caught:
        search(script, time)
    assert isinstance(caught.value, InfrastructureError)
    assert str(caught.value).startswith(f"retriever at {URL}: ")
    assert (len(script.requests), time.sleeps) == (1, [])


@pytest.mark.parametrize("code", [301, 400, 401, 403, 404, 413, 422])
def test_what_the_server_refuses_is_the_users_matter(code: int) -> None:
    script = Script(status(code))
    with pytest.raises(InputError, match=f"refuses: status {code} why it failed"):
        search(script, FakeTime())
    assert len(script.requests) == 1


@pytest.mark.parametrize("url", ["http://host:port/r", "http://host:70000/r", "http://\x00/r"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="retriever address http://"):
        HttpRetriever(url)


def test_an_error_of_the_server_itself_is_infrastructure() -> None:
    with pytest.raises(UnavailableError, match="status 500 why it failed"):
        search(Script(status(500)), FakeTime())


def test_T_C01_pauses_are_jittered_and_grow() -> None:
    draw = random.Random(1)
    for failures, most in ((1, 0.5), (2, 1.0), (3, 2.0), (9, 8.0)):
        pauses = [pause(failures, draw) for _ in range(2_000)]
        assert 0 <= min(pauses) < 0.05 * most
        assert 0.95 * most < max(pauses) <= most
        assert statistics.pvariance(pauses) > 0.05 * most**2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, 0), ("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("inf", 0), ("nan", 0), ("", 0)],
)
def test_retry_after_as_a_number(text: str | None, seconds: float) -> None:
    assert seconds_asked(text) == seconds


def test_retry_after_as_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert seconds_asked(format_datetime(soon, usegmt=True)) == pytest.approx(29, abs=3)
    assert seconds_asked("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert seconds_asked("Wed, 21 Oct 2015 07:28:00") == 0


def test_the_request_is_search_r1s_with_the_key_in_a_header() -> None:
    script = Script(good)
    search(script, FakeTime(), ["who", "where"], key="canary-4711")
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
    found = search(script, FakeTime(), queries)
    assert [hits[0].passage.id for hits in found] == queries
    asked = [json.loads(request.content)["queries"] for request in script.requests]
    assert [len(part) for part in asked] == [512, 188]


def test_no_request_is_larger_than_a_server_takes() -> None:
    script = Script(good)
    queries = [f"{number} " + 'é"\\' * 1_300 for number in range(512)]
    found = search(script, FakeTime(), queries)
    assert [hits[0].passage.id for hits in found] == [query[:MAX_QUERY] for query in queries]
    sizes = [len(request.content) for request in script.requests]
    assert max(sizes) <= MAX_BODY
    assert sum(sizes) / len(sizes) > MAX_BODY / 2


def test_an_empty_answer_is_kept_too() -> None:
    script = Script(lambda _: httpx2.Response(200, json={"result": [[]]}))
    assert search(script, FakeTime(), ["a", "a"]) == [[], []]

    async def twice() -> None:
        retriever = HttpRetriever(URL, transport=httpx2.MockTransport(script))
        assert await retriever.search(["a"], 3) == await retriever.search(["a"], 3) == [[]]
        await retriever.aclose()

    asyncio.run(twice())
    assert len(script.requests) == 2


def test_queries_are_cut_and_cleaned_to_what_the_server_takes() -> None:
    script = Script(good)
    search(script, FakeTime(), ["x" * 5_000, "half \ud800 pair"])
    assert json.loads(script.requests[0].content)["queries"] == ["x" * 4_096, "half ? pair"]


def test_an_answer_is_kept_for_the_same_query_and_k() -> None:
    script = Script(good)

    async def run() -> None:
        retriever = HttpRetriever(URL, transport=httpx2.MockTransport(script), cache=2)
        first = await retriever.search(["a"], 3)
        first[0].clear()
        assert (await retriever.search(["a"], 3))[0][0].passage.id == "a"
        assert len(script.requests) == 1
        await retriever.search(["a"], 4)
        await retriever.search(["b", "a"], 3)
        assert json.loads(script.requests[-1].content)["queries"] == ["b"]
        assert len(script.requests) == 3
        await retriever.aclose()

    asyncio.run(run())


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


def test_T_C04_an_outage_costs_time_and_nothing_else() -> None:
    """The client's part: forty searches while the server is down are all answered."""
    time, down_until = FakeTime(), 45.0
    calls: list[float] = []

    def server(request: httpx2.Request) -> httpx2.Response:
        calls.append(time.now)
        if time.now < down_until:
            raise httpx2.ConnectError("connection refused")
        return good(request)

    sleepers: list[tuple[float, int, asyncio.Event]] = []

    async def sleep(seconds: float) -> None:
        woken = asyncio.Event()
        sleepers.append((time.now + seconds, len(sleepers), woken))
        await woken.wait()

    async def run_time(searches: asyncio.Future[Any]) -> None:
        while not searches.done():
            for _ in range(50):
                await asyncio.sleep(0)
            if sleepers:
                sleepers.sort(key=lambda sleeper: sleeper[:2])
                time.now, _, woken = sleepers.pop(0)
                woken.set()

    async def run() -> list[list[list[Hit]]]:
        clock = Clock(lambda: time.now, sleep)
        transport = httpx2.MockTransport(server)
        retriever = HttpRetriever(URL, transport=transport, clock=clock)
        searches = asyncio.gather(*(retriever.search([f"q{n}"], 3) for n in range(40)))
        await run_time(searches)
        await retriever.aclose()
        return await searches

    found = asyncio.run(run())
    assert [rows[0][0].passage.id for rows in found] == [f"q{n}" for n in range(40)]
    assert down_until <= time.now <= 60
    while_down = [moment for moment in calls if SECONDS_OPEN / 2 < moment < down_until]
    assert 3 <= len(while_down) <= 5, "one probe every ten seconds, not forty callers"


def test_probes_are_none_of_the_tries() -> None:
    time = FakeTime()

    def server(request: httpx2.Request) -> httpx2.Response:
        if time.now < 95:
            raise httpx2.ConnectError("connection refused")
        return good(request)

    async def run() -> None:
        transport = httpx2.MockTransport(server)
        retriever = HttpRetriever(URL, transport=transport, clock=time.clock, seconds=120)
        for _ in range(5):
            retriever._breaker.leave(retriever._breaker.enter(), good=False)
        assert await retriever.search(["patient"], 3)
        await retriever.aclose()

    asyncio.run(run())
    assert 95 <= time.now <= 106


def test_an_outage_longer_than_the_deadline_is_an_error() -> None:
    time = FakeTime()
    script = Script(httpx2.ConnectError("connection refused"))

    async def run() -> None:
        transport = httpx2.MockTransport(script)
        retriever = HttpRetriever(URL, transport=transport, clock=time.clock, seconds=25)
        with pytest.raises(UnavailableError):
            await retriever.search(["first"], 3)
        with pytest.raises(UnavailableError):
            await retriever.search(["second"], 3)
        before = len(script.requests)
        with pytest.raises(UnavailableError, match=URL):
            await retriever.search(["third"], 3)
        assert len(script.requests) - before <= 3
        await retriever.aclose()

    asyncio.run(run())


def test_a_search_that_is_given_up_frees_the_probe() -> None:
    release = asyncio.Event()

    async def server(request: httpx2.Request) -> httpx2.Response:
        await release.wait()
        return good(request)

    async def run() -> None:
        time = FakeTime()
        retriever = HttpRetriever(URL, transport=httpx2.MockTransport(server), clock=time.clock)
        for _ in range(5):
            retriever._breaker.leave(retriever._breaker.enter(), good=False)
        time.now += SECONDS_OPEN
        probe = asyncio.ensure_future(retriever.search(["a"], 1))
        await asyncio.sleep(0.01)
        probe.cancel()
        await asyncio.wait([probe])
        release.set()
        assert await retriever.search(["b"], 1)
        await retriever.aclose()

    asyncio.run(run())


def test_it_works_in_one_event_loop_after_another_and_leaves_nothing_open() -> None:
    closed = []

    class Transport(httpx2.MockTransport):
        async def aclose(self) -> None:
            closed.append("connections")

    retriever = HttpRetriever(URL, transport=Transport(Script(good)))
    for number, name in enumerate("ab", start=1):
        [[hit]] = asyncio.run(retriever.search([name], 1))
        assert hit.passage.id == name
        assert len(closed) == number


def test_over_the_real_application_it_is_the_index_itself() -> None:
    own = Bm25Retriever(corpus())
    queries = ["lake number 3", "Chur", "nothing of it", ""]

    async def run() -> list[list[Hit]]:
        application = app(own, key="canary-4711")
        async with started(application) as client:
            await until_ready(client)
            retriever = HttpRetriever(
                "http://localhost/retrieve",
                "canary-4711",
                transport=httpx2.ASGITransport(app=application),
            )
            found = await retriever.search(queries, 4)
            await retriever.aclose()
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
    [[hit]] = read_answer(json.dumps({"result": [[item]]}).encode(), 1, 3, "server")
    assert (hit.passage.title, hit.passage.text) == ("A", "b")
    assert hit.score in (1.0, 2.0)
    assert hit.passage.id


def test_T_B04_repeated_passages_and_too_many_are_dropped() -> None:
    """As after Search-R1's server, which fills up with copies of the last document."""
    scores = [("b", 1.0), ("a", 1.0), ("c", 3.0), ("b", -3.4e38), ("d", 0.5)]
    row = [{"document": {"id": name, "text": ""}, "score": score} for name, score in scores]
    [hits] = read_answer(json.dumps({"result": [row]}).encode(), 1, 3, "server")
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
