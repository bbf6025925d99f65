"""Search on the web as a retriever: what is paid for, what is kept, what a page adds."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from searchrl.errors import InputError
from searchrl.retrieval.protocol import Hit
from searchrl.retrieval.web.fetch import Fetcher
from searchrl.retrieval.web.guard import Guard
from searchrl.retrieval.web.opening import open_web
from searchrl.retrieval.web.options import WebOptions
from searchrl.retrieval.web.retriever import WebRetriever
from searchrl.transport.errors import UnavailableError
from tests.fake_time import run_fast

Handler = Callable[[httpx2.Request], httpx2.Response]


class Engine:
    """Answers with ten results a page, named after query and rank, and counts."""

    def __init__(self, total: int = 25) -> None:
        self.asked: Counter[str] = Counter()
        self.total = total
        self.down = False

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if self.down:
            return httpx2.Response(500)
        asked = json.loads(request.content)
        self.asked[f"{asked['q']}/{asked['page']}"] += 1
        first = 10 * (asked["page"] - 1)
        rows = [
            {
                "link": f"https://e.test/{asked['q']}/{n}",
                "title": f"T{n}",
                "snippet": f"snippet {n}",
            }
            for n in range(first, min(first + 10, self.total))
        ]
        return httpx2.Response(200, json={"organic": rows})


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "sk-CANARY")


def opened(
    engine: Handler, store: Path, fetcher: Fetcher | None = None, **options: Any
) -> WebRetriever:
    values = {"kind": "web", "provider": "serper", **options}
    transport = httpx2.MockTransport(engine)
    return open_web(WebOptions.model_validate(values), store / "web.sqlite", transport, fetcher)


def names(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.id.removeprefix("https://e.test/") for hit in hits]


def test_answers_are_kept_on_disk_and_a_shorter_list_is_a_prefix(tmp_path: Path) -> None:
    engine = Engine()
    for _ in range(2):
        retriever = opened(engine, tmp_path)
        three, twelve = (asyncio.run(retriever.search([" a \n b", "c", "a b"], k)) for k in (3, 12))
        assert three[0] == three[2] == twelve[0][:3]
        assert names(twelve[1]) == [f"c/{n}" for n in range(12)]
    assert engine.asked == {"a b/1": 1, "a b/2": 1, "c/1": 1, "c/2": 1}


def test_no_more_is_found_than_there_is(tmp_path: Path) -> None:
    [hits] = asyncio.run(opened(Engine(12), tmp_path).search(["q"], 100))
    assert len(hits) == 12
    [hits] = asyncio.run(opened(Engine(1_000), tmp_path / "b").search(["q"], 500))
    assert len(hits) == 100


def test_who_asks_the_same_at_once_asks_once(tmp_path: Path) -> None:
    engine = Engine()

    async def together() -> list[list[list[Hit]]]:
        retriever = opened(engine, tmp_path)
        return await asyncio.gather(*(retriever.search(["same", f"own {n}"], 3) for n in range(8)))

    found = asyncio.run(together())
    assert len({tuple(names(rows[0])) for rows in found}) == 1
    assert engine.asked == {"same/1": 1, **{f"own {n}/1": 1 for n in range(8)}}


def test_empty_and_long_and_broken_queries(tmp_path: Path) -> None:
    engine = Engine()
    retriever = opened(engine, tmp_path)
    assert asyncio.run(retriever.search(["", "  \n", "half \ud800"], 1))[:2] == [[], []]
    asyncio.run(retriever.search(["x" * 5_000], 1))
    assert list(engine.asked) == ["half ?/1", "x" * 2_048 + "/1"]
    with pytest.raises(InputError, match="k is 0"):
        asyncio.run(retriever.search(["a"], 0))


def test_a_failed_search_is_an_error_and_never_an_empty_list(tmp_path: Path) -> None:
    engine = Engine()
    retriever = opened(engine, tmp_path)
    asyncio.run(retriever.search(["known"], 3))
    engine.down = True
    with pytest.raises(UnavailableError, match="answers 500"):
        asyncio.run(retriever.search(["known", "new"], 3))
    assert asyncio.run(retriever.search(["known"], 3))[0] != []


def test_the_cap_on_requests_ends_the_command(tmp_path: Path) -> None:
    retriever = opened(Engine(), tmp_path, max_requests=2)
    asyncio.run(retriever.search(["a", "b"], 3))
    asyncio.run(retriever.search(["a", "b"], 5))
    with pytest.raises(InputError, match="max_requests is used up"):
        asyncio.run(retriever.search(["c"], 3))


def test_the_pace_of_the_plan_is_kept(tmp_path: Path) -> None:
    retriever = opened(Engine(), tmp_path, per_second=2)
    _, seconds = run_fast(retriever.search([f"q{n}" for n in range(9)], 3))
    assert seconds == pytest.approx(4.0)


class Site:
    """Pages of ``e.test``, read through a real fetcher."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.status: dict[str, int] = {}

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.asked[path] += 1
        status = self.status.get(path, 404 if path == "/robots.txt" else 200)
        rank = path.rpartition("/")[2]
        text = f"<p>Nothing here.</p><p>The page of q at rank {rank}.</p>"
        if path == "/robots.txt":
            text = "User-agent: *\nDisallow: /q/4"

        async def pieces() -> AsyncIterator[bytes]:
            yield text.encode()

        kind = "text/plain" if path == "/robots.txt" else "text/html"
        return httpx2.Response(status, headers={"content-type": kind}, content=pieces())

    def fetcher(self) -> Fetcher:
        async def resolve(host: str, port: int) -> Sequence[str]:
            return ["93.184.216.34"]

        return Fetcher(Guard(resolve), transport=httpx2.MockTransport(self))


def test_pages_stand_in_for_snippets_where_they_can_be_read(tmp_path: Path) -> None:
    site = Site()
    site.status = {"/robots.txt": 200, "/q/1": 404, "/q/2": 503}
    for _ in range(2):
        retriever = opened(Engine(), tmp_path, site.fetcher(), read_pages=True, page_characters=30)
        [hits] = asyncio.run(retriever.search(["q"], 5))
        assert [hit.passage.text for hit in hits] == [
            "The page of q at rank 0.", "snippet 1", "snippet 2", "The page of q at rank 3.",
            "snippet 4",
        ]  # fmt: skip
    # What was read or will not change is kept; what may change is tried again.
    assert site.asked == {"/robots.txt": 2, "/q/0": 1, "/q/1": 1, "/q/2": 2, "/q/3": 1}


def test_pages_are_not_fetched_unless_asked_for(tmp_path: Path) -> None:
    site = Site()
    [hits] = asyncio.run(opened(Engine(), tmp_path, site.fetcher()).search(["q"], 2))
    assert [hit.passage.text for hit in hits] == ["snippet 0", "snippet 1"]
    assert not site.asked


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"provider": "searxng"}, "needs url"),
        ({"provider": "google"}, "engine_id go together"),
        ({"provider": "brave", "engine_id": "x"}, "engine_id go together"),
        ({"provider": "bing"}, "provider"),
        ({"provider": "brave", "url": "brave.com"}, "url"),
        ({"provider": "brave", "per_second": 0}, "per_second"),
    ],
)
def test_options_that_cannot_be_meant(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WebOptions.model_validate({"kind": "web", **values})
