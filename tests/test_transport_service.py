"""Calls to a service that fails in every way, in fake time: what is tried again, what is not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import statistics
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.errors import InputError
from searchrl.transport.breaker import SECONDS_OPEN
from searchrl.transport.errors import MalformedAnswerError, UnavailableError
from searchrl.transport.keys import Credential
from searchrl.transport.retry import TRIES, backoff, seconds_asked_for
from searchrl.transport.service import Call, Patience, Service
from tests.fake_time import run_fast

Step = Callable[[httpx2.Request], httpx2.Response]
KEY = "sk-CANARY-12345"
ANY = Call("/x", {})


def answer(status: int, text: str = "", **headers: str) -> Step:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: httpx2.Response(status, text=text, headers=named)


def raising(error: type[Exception]) -> Step:
    def step(request: httpx2.Request) -> httpx2.Response:
        raise error("boom\n boom")

    return step


def good(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json={"a": 1})


class Script:
    """Answers with one step after another; the last one repeats."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.times: list[float] = []
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        step = self.steps[min(len(self.times), len(self.steps) - 1)]
        self.times.append(asyncio.get_running_loop().time())
        self.requests.append(request)
        return step(request)


def service(script: Script, outage: float = 600.0, **times: Any) -> Service:
    return Service(
        "http://example.test/v1/",
        Credential(KEY),
        Patience(outage=outage, **times),
        transport=httpx2.MockTransport(script),
    )


def call(script: Script) -> tuple[dict[str, Any], float]:
    return run_fast(service(script).ask(Call("/x", {"q": "ü"})))


def failure(
    script: Script, kind: type[Exception] = UnavailableError, **times: Any
) -> tuple[str, float]:
    async def main() -> str:
        with pytest.raises(kind) as caught:
            await service(script, **times).ask(ANY)
        return str(caught.value)

    return run_fast(main())


def test_what_is_sent_and_what_comes_back() -> None:
    script = Script(good)
    assert call(script) == ({"a": 1}, 0.0)
    (request,) = script.requests
    assert (request.method, str(request.url)) == ("POST", "http://example.test/v1/x")
    assert json.loads(request.content) == {"q": "ü"}
    assert request.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "step",
    [
        *[answer(status) for status in (408, 429, 502, 503, 504)],
        *map(raising, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ReadError)),
        *map(raising, (httpx2.RemoteProtocolError, httpx2.WriteError)),
        *map(raising, (httpx2.PoolTimeout, httpx2.DecodingError)),
    ],
)
def test_passing_trouble_is_tried_again(step: Step) -> None:
    script = Script(step, step, step, good)
    result, seconds = call(script)
    assert result == {"a": 1}
    assert 0 < seconds <= 0.5 + 1 + 2
    message, seconds = failure(Script(step))
    assert "http://example.test/v1" in message
    assert f"(try {TRIES})" in message
    assert "\n" not in message
    assert seconds <= 0.5 + 1 + 2


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (answer(500, "oops"), "answers 500: oops"),
        (answer(400, "too long"), "answers 400: too long"),
        (answer(422), "answers 422"),
        (answer(302, Location="http://elsewhere.test/"), "answers 302"),
        (raising(httpx2.ReadTimeout), "did not answer in time"),
    ],
)
def test_what_would_come_again_is_not_tried_again(step: Step, said: str) -> None:
    script = Script(step, good)
    message, _ = failure(script)
    assert said in message
    assert len(script.times) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<html>Sign in</html>", "not JSON: <html>Sign in</html>"),
        ('{"a": 1', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "no JSON object: [1]"),
        ("", "not JSON"),
    ],
)
def test_what_is_no_json_object_fails_at_once(text: str, said: str) -> None:
    script = Script(answer(200, text), good)
    message, _ = failure(script, MalformedAnswerError)
    assert said in message
    assert len(script.times) == 1


def test_T_C01_slow_answers_are_waited_for_again_only_where_that_adds_nothing() -> None:
    async def slow(request: httpx2.Request) -> httpx2.Response:
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(30)
        raise httpx2.ReadTimeout("read timed out")

    for repeat, tries in ((True, 2), (False, 1)):
        times: list[float] = []
        message, seconds = failure(Script(slow), repeat_slow=repeat)  # type: ignore[arg-type]
        assert "did not answer in time" in message
        assert len(times) == tries
        assert seconds <= 60


def test_which_refusals_are_the_users_is_the_callers_to_say() -> None:
    script = Script(answer(422, "topk"))
    transport = httpx2.MockTransport(script)
    asked = Service("http://e.test", refusals=range(300, 500), transport=transport)
    with pytest.raises(InputError, match=r"http://e.test/x answers 422: topk"):
        run_fast(asked.ask(ANY))
    script.steps = (answer(408), good)
    assert run_fast(asked.ask(ANY))[0] == {"a": 1}, "what may pass is no refusal"


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_wrong_address_or_key_is_the_users_to_mend(status: int) -> None:
    script = Script(answer(status, f"no such key: {KEY}"))

    async def main() -> str:
        with pytest.raises(InputError) as caught:
            await service(script).ask(ANY)
        return str(caught.value)

    message, _ = run_fast(main())
    assert str(status) in message
    assert "[key]" in message
    assert KEY not in message
    assert len(script.times) == 1


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchrl.transport.service._MAX_BYTES", 1000)
    sent: list[int] = []

    async def endless() -> Any:
        while True:
            sent.append(1)
            yield b"x" * 100

    script = Script(lambda request: httpx2.Response(200, content=endless()))
    assert "without end" in failure(script)[0]
    assert len(sent) <= 12


def test_an_answer_that_trickles_ends_at_the_deadline() -> None:
    async def trickle() -> Any:
        while True:
            await asyncio.sleep(5)
            yield b" "

    script = Script(lambda request: httpx2.Response(200, content=trickle()))
    message, seconds = failure(script)
    assert "did not answer in time" in message
    assert seconds == pytest.approx(60)


def test_a_server_is_not_asked_before_the_time_it_names() -> None:
    script = Script(answer(429, Retry_After="7"), answer(503, Retry_After="20"), good)
    _, seconds = call(script)
    assert script.times[1] >= 7
    assert script.times[2] - script.times[1] >= 20
    assert seconds < 27 + 1.5


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    message, seconds = failure(Script(answer(429, Retry_After="3600")))
    assert "time is up" in message
    assert seconds == 0


def together(script: Script, calls: int, outage: float = 600.0) -> tuple[list[object], float]:
    async def main() -> list[object]:
        asked = service(script, outage)
        with contextlib.suppress(UnavailableError):
            await asked.ask(ANY)
        results = (asked.ask(ANY) for _ in range(calls))
        return list(await asyncio.gather(*results, return_exceptions=True))

    return run_fast(main())


def until(second: float, before: Step, after: Step = good) -> Step:
    return lambda request: (before if asyncio.get_running_loop().time() < second else after)(
        request
    )


@pytest.mark.parametrize("trouble", [raising(httpx2.ConnectError), answer(503)])
def test_an_outage_pauses_every_call_and_loses_none(trouble: Step) -> None:
    script = Script(good, until(120, trouble))
    results, seconds = together(script, 40)
    assert results == [{"a": 1}] * 40
    assert 120 <= seconds < 145
    during = [time for time in script.times if 10 < time < 120]
    assert all(later - earlier >= 9.99 for earlier, later in itertools.pairwise(during))


def test_an_outage_that_does_not_end_is_a_failure_of_every_call() -> None:
    results, seconds = together(Script(good, raising(httpx2.ConnectError)), 40)
    assert {type(result) for result in results} == {UnavailableError}
    assert "down for" in str(results[0])
    assert "boom boom" in str(results[0])
    assert 580 <= seconds <= 620


def test_without_patience_an_outage_fails_at_once() -> None:
    results, seconds = together(Script(good, raising(httpx2.ConnectError)), 40, outage=0)
    assert {type(result) for result in results} == {UnavailableError}
    assert seconds < 4


def test_a_service_that_never_answered_is_not_waited_for() -> None:
    results, seconds = together(Script(raising(httpx2.ConnectError)), 40)
    assert {type(result) for result in results} == {UnavailableError}
    assert all("boom boom" in str(result) for result in results)
    assert seconds < 8


def test_a_service_that_is_starting_may_be_waited_for() -> None:
    def calls(start: float) -> tuple[list[object], float]:
        script = Script(until(45, raising(httpx2.ConnectError)))

        async def main() -> list[object]:
            asked = service(script, start=start)
            return list(
                await asyncio.gather(*(asked.ask(ANY) for _ in range(8)), return_exceptions=True)
            )

        return run_fast(main())

    results, seconds = calls(60)
    assert results == [{"a": 1}] * 8
    assert 45 <= seconds < 60
    assert {type(result) for result in calls(25)[0]} == {UnavailableError}


def open_breaker(asked: Service) -> None:
    for _ in range(5):
        asked._breaker.leave(asked._breaker.enter(), good=False)


def test_probes_are_none_of_the_tries() -> None:
    script = Script(until(95, raising(httpx2.ConnectError)))

    async def main() -> dict[str, Any]:
        asked = service(script, start=120)
        open_breaker(asked)
        return await asked.ask(ANY)

    result, seconds = run_fast(main())
    assert result == {"a": 1}
    assert 95 <= seconds < 106


def test_a_call_that_is_given_up_frees_the_probe() -> None:
    release = asyncio.Event()

    async def server(request: httpx2.Request) -> httpx2.Response:
        await release.wait()
        return httpx2.Response(200, json={})

    async def main() -> None:
        asked = Service("http://e.test", transport=httpx2.MockTransport(server))
        open_breaker(asked)
        await asyncio.sleep(SECONDS_OPEN)
        probe = asyncio.ensure_future(asked.ask(ANY))
        await asyncio.sleep(0.01)
        probe.cancel()
        await asyncio.wait([probe])
        release.set()
        assert await asked.ask(ANY) == {}

    assert run_fast(main())[1] < SECONDS_OPEN + 1


def test_no_more_tries_a_second_than_the_service_allows() -> None:
    script = Script(good)

    async def main() -> None:
        transport = httpx2.MockTransport(script)
        asked = Service("http://e.test", per_second=4, transport=transport)
        await asyncio.gather(*(asked.ask(ANY) for _ in range(9)))

    assert run_fast(main())[1] == pytest.approx(2.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(script.times)]
    assert min(gaps) == pytest.approx(0.25)


def test_a_get_and_a_key_in_the_query(caplog: pytest.LogCaptureFixture) -> None:
    script = Script(answer(400, f"bad key {KEY}"))
    credential = Credential(KEY, name="api_key", in_query=True)
    asked = Service("http://e.test/a", credential, transport=httpx2.MockTransport(script))
    with caplog.at_level("INFO", logger="httpx2"), pytest.raises(UnavailableError) as caught:
        run_fast(asked.ask(Call("/search", params={"q": "ü b"})))
    (request,) = script.requests
    assert (request.method, request.url.path, request.content) == ("GET", "/a/search", b"")
    assert dict(request.url.params) == {"q": "ü b", "api_key": KEY}
    assert "HTTP Request: GET http://e.test/a/search" in caplog.text
    for text in (caplog.text, str(caught.value), repr(credential)):
        assert KEY not in text


def test_an_address_keeps_its_own_query() -> None:
    script = Script(good)
    run_fast(Service("http://e.test/r?a=1", transport=httpx2.MockTransport(script)).ask(Call()))
    assert str(script.requests[0].url) == "http://e.test/r?a=1"


def test_calls_wait_in_line_without_losing_time() -> None:
    running = most = 0

    async def slow(request: httpx2.Request) -> httpx2.Response:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(25)
        running -= 1
        return httpx2.Response(200, json={})

    async def main() -> list[object]:
        asked = Service("http://e.test", concurrency=2, transport=httpx2.MockTransport(slow))
        return list(await asyncio.gather(*(asked.ask(ANY) for _ in range(10))))

    results, seconds = run_fast(main())
    assert results == [{}] * 10
    assert seconds == pytest.approx(125)
    assert most == 2


def test_one_service_serves_one_event_loop_after_another() -> None:
    script = Script(good)
    asked = service(script)
    clients = []
    for _ in range(2):
        assert run_fast(asked.ask(ANY))[0] == {"a": 1}
        assert asked._session is not None
        clients.append(asked._session.client)
    assert clients[0] is not clients[1]
    assert all(client.is_closed for client in clients)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.test",
        "ftp://e.test",
        "http://",
        "http://[::1",
        3,
        "http://e.test:70000",
        "http://e.test:port",
        "http://\x00/",
    ],
)
def test_a_url_that_is_none_is_refused(url: Any) -> None:
    with pytest.raises(InputError, match="url"):
        Service(url)


def waits(failures: int) -> Iterable[float]:
    return [backoff(failures) for _ in range(300)]


def test_waits_are_spread_over_a_range_that_doubles() -> None:
    for failures, bound in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 8.0), start=1):
        drawn = list(waits(failures))
        assert 0 <= min(drawn) < 0.1 * bound
        assert 0.9 * bound < max(drawn) <= bound
        assert statistics.pvariance(drawn) > bound**2 / 20


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, 0), ("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("inf", 0), ("nan", 0), ("", 0)],
)
def test_retry_after_as_a_number(text: str | None, seconds: float) -> None:
    assert seconds_asked_for(text) == seconds


def test_retry_after_as_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=100)
    assert 98 < seconds_asked_for(format_datetime(soon, usegmt=True)) <= 100
    assert seconds_asked_for("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert seconds_asked_for("Wed, 21 Oct 2015 07:28:00") == 0


@settings(max_examples=40)
@given(st.text(max_size=30))
def test_any_other_retry_after_is_no_wait(text: str) -> None:
    assert seconds_asked_for(text) >= 0
