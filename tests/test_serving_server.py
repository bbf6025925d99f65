"""What ``searchrl serve`` refuses before anything is bound."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from searchrl.retrieval.index import build_index
from searchrl.serving.server import Address
from tests.command_line import refused
from tests.serving_fixtures import corpus


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
