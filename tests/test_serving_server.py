"""What ``searchrl serve`` serves, and what it refuses before anything is bound."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from searchrl.recipe_file import web_options
from searchrl.retrieval.index import build_index
from searchrl.serving.app import RetrieverApp
from searchrl.serving.served import Web
from searchrl.serving.server import Address
from searchrl.serving.settings import ServerSettings
from tests.command_line import refused
from tests.local_server import local_server
from tests.serving_fixtures import ask, corpus


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "index"
    build_index(corpus(), path)
    return path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_T_B11_the_network_is_not_served_without_a_key(host: str, index: Path) -> None:
    line = refused("serve", "--index", index, "--host", host)
    assert f"--host {host}: other machines could use the server without a key" in line
    assert "--key-variable" in line


def test_T_B11_the_default_is_loopback() -> None:
    assert Address().host == "127.0.0.1"


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_key_is_refused(
    value: str | None, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEARCH_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SEARCH_KEY", value)
    line = refused("serve", "--index", index, "--key-variable", "SEARCH_KEY", "--host", "0.0.0.0")
    assert "SEARCH_KEY" in line


def test_a_taken_port_is_refused(index: Path, taken_port: int) -> None:
    line = refused("serve", "--index", index, "--port", str(taken_port))
    assert f"http://127.0.0.1:{taken_port}: cannot be bound: Address already in use" in line


def test_a_host_that_is_none_of_this_machine_is_refused(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_KEY", "canary-4711")
    line = refused("serve", "--index", index, "--host", "192.0.2.1", "--key-variable", "SEARCH_KEY")
    assert "cannot be bound" in line
    assert "canary" not in line


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    assert "no index directory there" in refused("serve", "--index", tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "manifest.json" in refused("serve", "--index", tmp_path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "one of --index DIR, --shard URL"),
        (("--index", "x", "--web", "serper"), "one of --index DIR, --shard URL"),
        (("--index", "x", "--set", "per_second=1"), "--set per_second=1: goes with --web"),
        (("--web", "serper", "--encoder", "x"), "--encoder x: goes with --index"),
        (("--web", "serper", "--dtype", "float32"), "--dtype float32: goes with --index"),
        (("--web", "bing"), "web options: provider"),
        (("--web", "serper", "--set", "depth=3"), "web options: depth"),
        (("--web", "serper"), "SERPER_API_KEY"),
        (("--web", "serper", "--workers", "2"), "--workers 2: the web is served by one process"),
    ],
)
def test_what_can_be_neither_index_nor_web_is_refused(
    options: Sequence[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    assert complaint in refused("serve", *options)


def test_the_web_is_served_in_the_form_of_an_index(tmp_path: Path) -> None:
    found = [{"url": "https://e.test/1", "title": "Chur", "content": "Chur is old."}]

    async def script(client: httpx2.AsyncClient) -> Any:
        body = {"queries": ["how old is Chur"], "topk": 3, "return_scores": True}
        return (await client.post("/retrieve", json=body)).json()

    with local_server() as engine:
        engine.answer = lambda asked: (
            200, {"results": found if asked.params["pageno"] == "1" else []}
        )  # fmt: skip
        options = web_options("searxng", [f"url={engine.url}"])
        web = Web(options=options, cache=tmp_path / "web.sqlite")
        answer = ask(RetrieverApp(web.open, ServerSettings()), script)
    assert answer == {
        "result": [
            [
                {
                    "document": {
                        "id": "https://e.test/1", "contents": '"Chur"\nChur is old.',
                        "title": "Chur", "text": "Chur is old.",
                    },
                    "score": 1.0,
                }
            ]
        ]
    }  # fmt: skip
