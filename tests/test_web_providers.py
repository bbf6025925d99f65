"""Each search service, as a local server answers in its documented form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from searchrl.errors import InputError, SearchRLError
from searchrl.retrieval.protocol import Hit
from searchrl.retrieval.web.opening import open_web
from searchrl.retrieval.web.options import WebOptions
from searchrl.transport.errors import MalformedAnswerError, UnavailableError
from tests.local_server import Asked, LocalServer, local_server

KEY = "sk-CANARY-4711"
Row = tuple[str, str, str]


@dataclass(frozen=True)
class Form:
    """How a service is asked and answers.

    Attributes:
        variable: its key's environment variable.
        asked: what a request for page 1 of "who is it" says.
        key: where the key is, in a header or parameter.
        answer: makes an answer of rows.
        nothing: its answer to a search that finds nothing.
        failures: answers with status 200 that are none, and what is said of them.
        refused: a status by which it refuses a key.
    """

    variable: str
    asked: dict[str, Any]
    key: tuple[str, str]
    answer: Callable[[list[Row]], Any]
    nothing: Any
    failures: list[tuple[Any, str]]
    refused: int
    more: dict[str, Any] = field(default_factory=dict)


def named(url: str, title: str, text: str) -> Callable[[list[Row]], list[dict[str, str]]]:
    return lambda rows: [{url: row[0], title: row[1], text: row[2], "other": "x"} for row in rows]


FORMS = {
    "serpapi": Form(
        "SERPAPI_API_KEY",
        {"path": "/search.json", "q": "who is it", "engine": "google", "start": "10"},
        ("api_key", KEY),
        lambda rows: {
            "search_metadata": {"status": "Success"},
            "answer_box": {"title": "box", "link": "https://box.test", "snippet": "the answer"},
            "organic_results": named("link", "title", "snippet")(rows),
            "related_questions": [{"title": "r", "link": "https://r.test", "snippet": "no"}],
        },
        {
            "search_metadata": {"status": "Success"},
            "search_information": {"organic_results_state": "Fully empty"},
            "error": "Google hasn't returned any results for this query.",
        },
        [
            ({"error": "We couldn't get valid results for this search."}, "couldn't get valid"),
            ({"search_metadata": {"status": "Processing"}}, "status is 'Processing'"),
            ({"search_metadata": []}, "status is None"),
        ],
        401,
    ),
    "serper": Form(
        "SERPER_API_KEY",
        {"path": "/search", "q": "who is it", "num": 10, "page": 2},
        ("x-api-key", KEY),
        lambda rows: {
            "searchParameters": {"q": "who is it", "type": "search"},
            "knowledgeGraph": {"title": "k"},
            "organic": named("link", "title", "snippet")(rows),
            "credits": 1,
        },
        {"searchParameters": {"q": "x"}, "organic": [], "credits": 1},
        [({"message": "ok"}, "no field organic"), ({"organic": {}}, "dict, not a list")],
        403,
    ),
    "brave": Form(
        "BRAVE_API_KEY",
        {
            "path": "/web/search", "q": "who is it", "count": "20", "offset": "1",
            "text_decorations": "false", "result_filter": "web",
        },
        ("x-subscription-token", KEY),
        lambda rows: {
            "type": "search",
            "query": {"original": "who is it"},
            "web": {"type": "search", "results": named("url", "title", "description")(rows)},
        },
        {"type": "search", "query": {"original": "x"}},
        [
            ({"type": "ErrorResponse"}, "'ErrorResponse', not 'search'"),
            ({"type": "search", "web": {}}, "no results"),
            ({"type": "search", "web": None}, "no results"),
        ],
        401,
    ),
    "tavily": Form(
        "TAVILY_API_KEY",
        {"path": "/search", "query": "who is it", "max_results": 20, "search_depth": "basic"},
        ("authorization", f"Bearer {KEY}"),
        lambda rows: {
            "query": "who is it",
            "answer": None,
            "results": named("url", "title", "content")(rows),
            "response_time": 0.5,
        },
        {"query": "x", "results": [], "response_time": 0.5},
        [({"detail": {"error": "?"}}, "no field results")],
        432,
    ),
    "searxng": Form(
        "PROXY_KEY",
        {"path": "/search", "q": "who is it", "format": "json", "pageno": "2"},
        ("authorization", f"Bearer {KEY}"),
        lambda rows: {
            "query": "who is it",
            "number_of_results": 0,
            "results": named("url", "title", "content")(rows),
            "unresponsive_engines": [["bing", "timeout"]],
        },
        {"query": "x", "results": [], "unresponsive_engines": []},
        [
            ({"results": [], "unresponsive_engines": [["google", "CAPTCHA"]]}, "engines failed"),
            ({"query": "x"}, "no field results"),
        ],
        403,
        {"key_variable": "PROXY_KEY"},
    ),
    "google": Form(
        "GOOGLE_API_KEY",
        {"path": "/customsearch/v1", "q": "who is it", "cx": "engine", "num": "10", "start": "11"},
        ("x-goog-api-key", KEY),
        lambda rows: {
            "kind": "customsearch#search",
            "searchInformation": {"totalResults": str(len(rows))},
            "items": named("link", "title", "snippet")(rows),
        },
        {"kind": "customsearch#search", "searchInformation": {"totalResults": "0"}},
        [({"items": []}, "kind is None")],
        403,
        {"engine_id": "engine"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def running() -> Iterator[LocalServer]:
    with local_server() as server:
        yield server


@pytest.fixture
def server(running: LocalServer, monkeypatch: pytest.MonkeyPatch) -> LocalServer:
    for form in FORMS.values():
        monkeypatch.setenv(form.variable, KEY)
    running.asked.clear()
    return running


def search(
    server: LocalServer, name: str, store: Path, k: int = 3, query: str = "who is it"
) -> list[Hit]:
    values = {"kind": "web", "provider": name, "url": server.url, **FORMS[name].more}
    retriever = open_web(WebOptions.model_validate(values), store / "web.sqlite")
    [hits] = asyncio.run(retriever.search([query], k))
    return hits


def rows(first: int, count: int) -> list[Row]:
    return [
        (f"https://site{n}.test/", f" Title\n{n} ", f"Text  of {n}.")
        for n in range(first, first + count)
    ]


@pytest.mark.parametrize("name", FORMS)
def test_results_become_passages_and_pages_are_turned(
    name: str, server: LocalServer, tmp_path: Path
) -> None:
    form = FORMS[name]
    pages = [rows(0, 6), rows(5, 6), []]
    server.answer = lambda _: (200, form.answer(pages[len(server.asked) - 1]))
    hits = search(server, name, tmp_path, k=8)
    expected = 6 if name == "tavily" else 8
    assert [hit.passage.id for hit in hits] == [f"https://site{n}.test/" for n in range(expected)]
    assert (hits[1].passage.title, hits[1].passage.text) == ("Title 1", "Text of 1.")
    assert [hit.score for hit in hits] == [1 / rank for rank in range(1, expected + 1)]
    asked = server.asked[-1]
    fields = {"path": asked.path, **asked.params, **(asked.body or {})}
    place, key = form.key
    assert {**fields, **asked.headers}[place] == key
    assert {name: fields[name] for name in form.asked} == form.asked
    assert set(fields) - set(form.asked) <= {place}
    assert KEY.encode() not in (tmp_path / "web.sqlite").read_bytes()


@pytest.mark.parametrize("name", FORMS)
def test_only_what_says_so_found_nothing(name: str, server: LocalServer, tmp_path: Path) -> None:
    form = FORMS[name]
    server.answer = lambda _: (200, form.nothing)
    assert search(server, name, tmp_path) == []
    for number, (answer, said) in enumerate(form.failures):
        server.answer = lambda _, answer=answer: (200, answer)
        with pytest.raises((UnavailableError, MalformedAnswerError), match=said):
            search(server, name, tmp_path, query=f"q{number}")
    # A failure is not kept: the same query is asked again.
    server.answer = lambda _: (200, form.answer(rows(0, 1)))
    assert len(search(server, name, tmp_path, query="q0")) == 1


@pytest.mark.parametrize("name", FORMS)
def test_refused_keys_and_failed_searches_are_errors(
    name: str, server: LocalServer, tmp_path: Path
) -> None:
    def failing(status: int) -> tuple[type[SearchRLError], str]:
        server.answer = lambda _: (status, {"error": f"not with {KEY}"})
        with pytest.raises(SearchRLError) as caught:
            search(server, name, tmp_path)
        return type(caught.value), str(caught.value)

    kind, said = failing(FORMS[name].refused)
    assert kind is InputError
    assert f"answers {FORMS[name].refused}" in said
    assert KEY not in said
    assert failing(500)[0] is UnavailableError
    assert failing(400)[0] is UnavailableError
    server.answer = lambda _: (200, b"<html>Please log in</html>")
    with pytest.raises(MalformedAnswerError, match="not JSON"):
        search(server, name, tmp_path)
    bad = FORMS[name].answer([("no address", "t", "s")])
    server.answer = lambda _: (200, bad)
    with pytest.raises(MalformedAnswerError, match="no result has an address"):
        search(server, name, tmp_path)


@pytest.mark.parametrize("name", [name for name in FORMS if name != "searxng"])
def test_a_missing_key_is_one_line_that_names_its_variable(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(FORMS[name].variable, raising=False)
    more = FORMS[name].more
    options = WebOptions.model_validate({"kind": "web", "provider": name, **more})
    with pytest.raises(InputError, match=FORMS[name].variable) as caught:
        open_web(options, tmp_path / "web.sqlite")
    assert "\n" not in str(caught.value)


def test_googles_end_is_said_at_the_start(
    server: LocalServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = lambda _: (200, FORMS["google"].nothing)
    search(server, "google", tmp_path)
    assert "ends on 1 January 2027" in caplog.text


def test_braves_entities_and_limits(server: LocalServer, tmp_path: Path) -> None:
    found = [("https://a.test", "Q&amp;A", "it&#x27;s")]
    server.answer = lambda _: (200, FORMS["brave"].answer(found))
    [hit] = search(server, "brave", tmp_path, k=1, query="w " * 300)
    assert (hit.passage.title, hit.passage.text) == ("Q&A", "it's")
    assert server.asked[0].params["q"] == " ".join(["w"] * 50)


def test_fields_of_the_recipe_are_sent(server: LocalServer, tmp_path: Path) -> None:
    def sent(asked: Asked) -> tuple[int, Any]:
        return 200, FORMS["serper"].answer([])

    server.answer = sent
    values = {"kind": "web", "provider": "serper", "url": server.url, "extra": {"gl": "ch"}}
    retriever = open_web(WebOptions.model_validate(values), tmp_path / "web.sqlite")
    asyncio.run(retriever.search(["a"], 1))
    assert server.asked[0].body == {"q": "a", "num": 10, "page": 1, "gl": "ch"}
