"""Who may use a server: this machine, or whoever has the key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from searchrl.errors import InputError
from searchrl.models.local import LocalModel
from searchrl.models.protocol import Message, Sampling
from searchrl.serving.access import OPEN_PATHS, Access, check_bind, is_loopback
from searchrl.serving.model_server import ModelServer
from tests.model_server_fixtures import chat_model, running

KEY = "sk-CANARY"


@pytest.fixture(scope="module")
def local(random_model: LocalModel) -> LocalModel:
    return LocalModel(random_model.model, random_model.tokenizer)


@pytest.fixture(scope="module")
def url(local: LocalModel) -> Iterator[str]:
    with running(Access(ModelServer(local, local.tokenizer, "m"), None)) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def guarded(local: LocalModel) -> Iterator[tuple[str, list[str]]]:
    app = ModelServer(local, local.tokenizer, "m")
    with running(Access(app, KEY)) as address:
        yield address, app.paths


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=10) as opened:
        yield opened


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 401),
        ({"Authorization": "sk-CANARY"}, 401),
        ({"Authorization": "Basic sk-CANARY"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer sk-CANAR"}, 403),
        ({"Authorization": "Bearer sk-CANARYY"}, 403),
        ({"Authorization": "Bearer \xff"}, 403),
    ],
)
def test_every_path_but_health_is_guarded(
    guarded: tuple[str, list[str]],
    client: httpx2.Client,
    given: dict[str, str],
    status: int,
) -> None:
    address, paths = guarded
    headers = {name: value.encode("latin-1") for name, value in given.items()}
    for path in [*paths, "/anything"]:
        for method in ("GET", "POST"):
            answer = client.request(method, address + path, headers=headers)
            assert "CANARY" not in answer.text
            if path in OPEN_PATHS:
                assert answer.status_code in (200, 405)
            else:
                assert answer.status_code == status


def test_the_right_key_opens(
    guarded: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, _ = guarded
    monkeypatch.setenv("MODEL_KEY", KEY)
    model = chat_model(f"{address}/v1", tmp_path, key_env="MODEL_KEY")
    assert isinstance(asyncio.run(model.chat([Message("user", "a")], Sampling(2))), str)
    with pytest.raises(InputError, match=r"401: .*check the url, the key"):
        asyncio.run(chat_model(f"{address}/v1", tmp_path).chat([Message("user", "b")], Sampling(2)))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8001", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.test", 421),
        ("evil.test:8001", 421),
        ("127.0.0.1.evil.test", 421),
        ("192.168.0.1", 421),
        ("", 421),
    ],
)
def test_without_a_key_only_loopback_names_are_served(
    url: str, client: httpx2.Client, host: str, status: int
) -> None:
    answer = client.get(f"{url}/models", headers={"Host": host})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.test", False),
        ("", False),
    ],
)  # fmt: skip
def test_where_a_server_may_bind(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    check_bind(host, "key")
    if loopback:
        check_bind(host, None)
    else:
        with pytest.raises(InputError, match="--key-variable"):
            check_bind(host, None)
