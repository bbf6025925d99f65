"""Served models against servers that misbehave on a real socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from searchrl.agents.agent import Draw
from searchrl.agents.s3 import S3Agent, S3Options
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError
from searchrl.models.local import LocalModel
from searchrl.models.protocol import Message, Sampling
from searchrl.serving.model_server import ModelServer
from tests.fakes import ListRetriever, passages
from tests.model_server_fixtures import chat_model, misbehaving, raw_answer, running, token_model

QUESTION = Question("q", "Where is it?", ("there",))


@pytest.fixture(scope="module")
def local(random_model: LocalModel) -> LocalModel:
    return LocalModel(random_model.model, random_model.tokenizer)


GOOD = json.dumps(
    {"choices": [{"message": {"content": "Paris"}, "finish_reason": "stop"}]}
).encode()


class TestFaultsOnTheWire:
    @pytest.fixture(autouse=True)
    def short_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("searchrl.transport.retry._LONGEST_WAIT", 0.01)

    def ask(self, address: str, tmp_path: Path) -> str:
        model = chat_model(f"{address}/v1", tmp_path)
        return asyncio.run(model.chat([Message("user", "Where?")], Sampling(9)))

    @pytest.mark.parametrize(
        "trouble",
        [
            raw_answer("429 Too Many Requests", b"slow down", "Retry-After: 0"),
            raw_answer("503 Service Unavailable", b""),
            raw_answer("200 OK", GOOD[:-9], length=len(GOOD)),
            None,
            b"HTTP/1.1 200",
            b"\x00\x01\x02 nonsense\r\n\r\n",
        ],
        ids=["429", "503", "cut short", "hangs up", "half a header", "no HTTP"],
    )
    def test_passing_trouble_is_ridden_out(self, trouble: bytes | None, tmp_path: Path) -> None:
        with misbehaving(trouble, trouble, raw_answer("200 OK", GOOD)) as (address, requests):
            assert self.ask(address, tmp_path) == "Paris"
        assert len(requests) == 3
        assert b'"content": "Where?"' in requests[2]

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (raw_answer("200 OK", b"<html>Sign in</html>"), "not JSON: <html>Sign in</html>"),
            (raw_answer("200 OK", GOOD[:-9]), "not JSON"),
            (raw_answer("500 Oh", b"no"), "answers 500: no"),
            (raw_answer("302 Found", b"", "Location: http://127.0.0.1:1/"), "answers 302"),
        ],
    )
    def test_what_is_no_reply_is_a_failure(self, answer: bytes, said: str, tmp_path: Path) -> None:
        with (
            misbehaving(answer) as (address, requests),
            pytest.raises(InfrastructureError, match=said),
        ):
            self.ask(address, tmp_path)
        assert len(requests) == 1

    def test_a_killed_server_is_a_failure_and_then_an_answer_again(
        self, local: LocalModel, tmp_path: Path
    ) -> None:
        with (
            misbehaving(None) as (address, _),
            pytest.raises(InfrastructureError, match="cannot be reached"),
        ):
            self.ask(address, tmp_path)
        with running(ModelServer(local, local.tokenizer, "m")) as address:
            assert isinstance(self.ask(address, tmp_path), str)

    def test_an_agent_whose_model_dies_ends_its_episode_with_the_error(
        self, local: LocalModel, tmp_path: Path
    ) -> None:
        with misbehaving(None) as (address, _):
            model = token_model(f"{address}/v1", tmp_path, local.tokenizer)
            agent = S3Agent(model, ListRetriever(passages(9)), S3Options(style="brief"))
            episode = asyncio.run(agent.run(QUESTION, Draw()))
        assert episode.error is not None
        assert "cannot be reached" in episode.error
        assert all(segment.origin == "prompt" for segment in episode.segments)
