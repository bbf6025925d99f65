"""Who may use a served model: this machine, or whoever has the key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from searchrl.errors import InputError
from searchrl.models.local import LocalModel
from searchrl.models.protocol import Message, Sampling
from searchrl.serving.model_server import ModelServer
from tests.model_server_fixtures import chat_model, running

KEY = "sk-CANARY"


@pytest.fixture(scope="module")
def local(random_model: LocalModel) -> LocalModel:
    return LocalModel(random_model.model, random_model.tokenizer)


@pytest.fixture(scope="module")
def guarded(local: LocalModel) -> Iterator[tuple[str, ModelServer]]:
    app = ModelServer(local, local.tokenizer, "m", hosts=(), key=KEY)
    with running(app) as address:
        yield address, app


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
    guarded: tuple[str, ModelServer],
    client: httpx2.Client,
    given: dict[str, str],
    status: int,
) -> None:
    address, app = guarded
    headers = {name: value.encode("latin-1") for name, value in given.items()}
    opened = {route.path for route in app.routes if route.open}
    assert opened == {"/health", "/health/live", "/health/ready"}
    for path in [*(route.path for route in app.routes), "/anything"]:
        for method in ("GET", "POST"):
            answer = client.request(method, address + path, headers=headers)
            assert "CANARY" not in answer.text
            if path in opened:
                assert answer.status_code in (200, 405)
            else:
                assert answer.status_code == status


def test_the_right_key_opens(
    guarded: tuple[str, ModelServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    local: LocalModel, host: str, status: int
) -> None:
    async def get() -> int:
        transport = httpx2.ASGITransport(app=ModelServer(local, local.tokenizer, "m"))
        async with httpx2.AsyncClient(transport=transport, timeout=10) as opened:
            answer = await opened.get("http://any/v1/models", headers={"Host": host})
            return answer.status_code

    assert asyncio.run(get()) == status
