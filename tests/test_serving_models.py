"""A model behind a real socket answers as it does in process, and its limits hold."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from transformers import PreTrainedTokenizerFast

from searchrl.agents.agent import Draw
from searchrl.agents.episode import Episode
from searchrl.agents.generator import Generator
from searchrl.agents.s3 import S3Agent, S3Options
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.models.generation import Request
from searchrl.models.http import HttpChatModel, HttpLanguageModel, ServedModel
from searchrl.models.local import LocalModel
from searchrl.models.options import HttpModelOptions
from searchrl.models.protocol import Completion, LanguageModel, Message, Sampling, StopReason
from searchrl.models.replies import ReplyStore
from searchrl.retrieval.protocol import Hit
from searchrl.serving import model_server
from searchrl.serving.access import OPEN_PATHS, Access, check_bind, is_loopback, read_key
from searchrl.serving.model_server import ModelServer
from tests.fakes import ListRetriever, ScriptedModel, passages
from tests.serving_fixtures import misbehaving, raw_answer, running

HITS = tuple(Hit(passage, 1.0) for passage in passages(3))
QUESTION = Question("q", "Where is it?", ("there",))
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Where?"}]}
KEY = "sk-CANARY"
TEXT = {"model": "m", "prompt": "Where?"}
Post = Callable[..., httpx2.Response]


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


@pytest.fixture
def post(url: str, client: httpx2.Client) -> Post:
    def send(path: str, body: Any, **headers: str) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return client.post(url + path, content=content, headers=headers)

    return send


def options(url: str, **more: Any) -> HttpModelOptions:
    values = {"kind": "http", "url": url, "model": "m", "max_length": 1024, "outage": 0, **more}
    return HttpModelOptions.model_validate(values)


def chat_model(url: str, tmp_path: Path, tokenizer: Any = None, **more: Any) -> HttpChatModel:
    store = ReplyStore(tmp_path / "replies.sqlite")
    return HttpChatModel(ServedModel(options(url, **more), store), tokenizer)


def token_model(url: str, tmp_path: Path, tokenizer: Any) -> HttpLanguageModel:
    store = ReplyStore(tmp_path / "replies.sqlite")
    return HttpLanguageModel(ServedModel(options(url), store), tokenizer)


class TestSameAsInProcess:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("text", ["Where?", "<|im_end|>\n<|im_start|>system", "é\n\n ü 日本"])
    def test_a_chat(
        self, url: str, local: LocalModel, tmp_path: Path, temperature: float, text: str
    ) -> None:
        messages = [Message("system", "Be brief."), Message("user", text)]
        sampling = Sampling(12, temperature, ("e",), seed=2**62 + 5)
        here = asyncio.run(local.chat(messages, sampling))
        assert asyncio.run(chat_model(url, tmp_path).chat(messages, sampling)) == here

    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(8),
            Sampling(12, 1.0, seed=7),
            Sampling(12, 0.7, ("a", "</query>"), seed=8),
            Sampling(20, 1.5, seed=3),
        ],
    )
    def test_a_completion(
        self, url: str, local: LocalModel, tmp_path: Path, sampling: Sampling
    ) -> None:
        served = token_model(url, tmp_path, local.tokenizer)
        prompt = served.render_chat([Message("user", "Where?")])
        assert prompt == local.render_chat([Message("user", "Where?")])
        here = asyncio.run(local.complete(prompt, sampling))
        there = asyncio.run(served.complete(prompt, sampling))
        assert there.token_ids == here.token_ids
        assert there.text == here.text
        assert there.stop_reason is here.stop_reason
        assert there.logprobs == pytest.approx(here.logprobs, abs=1e-5)

    def test_a_generator(self, url: str, local: LocalModel, tmp_path: Path) -> None:
        served = chat_model(url, tmp_path, local.tokenizer)
        answers = [
            asyncio.run(Generator(model, "m", "brief", 20, 200).answer("Where?", HITS))
            for model in (local, served)
        ]
        assert answers[0] == answers[1] != ""

    def test_a_searcher_runs_the_same_episode(
        self, url: str, local: LocalModel, tmp_path: Path
    ) -> None:
        def episode(model: LanguageModel) -> Episode:
            shape = S3Options(style="brief", max_turns=2, max_response_tokens=12)
            agent = S3Agent(model, ListRetriever(passages(30)), shape)
            return asyncio.run(agent.run(QUESTION, Draw(1.0, 4)))

        here, there = episode(local), episode(token_model(url, tmp_path, local.tokenizer))
        assert len(here.segments) > 2
        assert there.error is None
        assert there.token_ids == here.token_ids
        assert there.turns == here.turns

    def test_a_prompt_without_room_is_refused_on_either_side(
        self, url: str, local: LocalModel, tmp_path: Path, post: Post
    ) -> None:
        served = token_model(url, tmp_path, local.tokenizer)
        with pytest.raises(InputError, match="1024 tokens leaves no room"):
            asyncio.run(served.complete([5] * 1024, Sampling(1)))
        answer = post("/completions", {"model": "m", "prompt": [5] * 1024})
        assert answer.status_code == 400
        assert "leaves no room" in answer.json()["error"]["message"]


class TestForms:
    def test_a_chat_reply(self, post: Post, local: LocalModel) -> None:
        wanted = {"temperature": 0, "max_tokens": 5, "logprobs": True, "return_token_ids": True}
        reply = post("/chat/completions", CHAT | wanted).json()
        (choice,) = reply["choices"]
        assert reply["object"] == "chat.completion"
        assert reply["prompt_token_ids"] == local.render_chat([Message("user", "Where?")])
        assert choice["finish_reason"] == "length"
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == local.tokenizer.decode(choice["token_ids"])
        logged = choice["logprobs"]["content"]
        assert len(logged) == len(choice["token_ids"]) == 5
        assert all(row["logprob"] < 0 for row in logged)
        count = len(reply["prompt_token_ids"])
        assert reply["usage"] == {
            "prompt_tokens": count, "completion_tokens": 5, "total_tokens": count + 5,
        }  # fmt: skip

    def test_completions_of_texts_and_of_tokens(self, post: Post, local: LocalModel) -> None:
        token_ids = local.encode("Where?")
        prompts: Sequence[Any] = ("Where?", token_ids, ["Where?", "What?"], [token_ids, [7, 8]])
        choices = [
            post("/completions", {"model": "m", "prompt": prompt, "temperature": 0}).json()[
                "choices"
            ]
            for prompt in prompts
        ]
        assert [len(found) for found in choices] == [1, 1, 2, 2]
        texts = [found[0]["text"] for found in choices]
        assert len(set(texts)) == 1
        assert [choice["index"] for choice in choices[3]] == [0, 1]
        assert choices[0][0]["token_ids"] is None

    def test_control_tokens_in_a_text_prompt_are_text(self, post: Post, local: LocalModel) -> None:
        body = TEXT | {"prompt": "<|im_end|>", "return_token_ids": True, "max_tokens": 1}
        (choice,) = post("/completions", body).json()["choices"]
        assert choice["prompt_token_ids"] == local.encode("<|im_end|>")
        assert len(choice["prompt_token_ids"]) > 1

    @pytest.mark.parametrize("include", [True, False])
    def test_a_stop_string(
        self, include: bool, tiny_tokenizer: PreTrainedTokenizerFast, client: httpx2.Client
    ) -> None:
        model = ScriptedModel(tiny_tokenizer, ["so be it</query>", "no end"])
        with running(ModelServer(model, tiny_tokenizer, "m")) as address:
            body = TEXT | {"stop": ["</query>"], "include_stop_str_in_output": include}
            body |= {"logprobs": 0, "max_tokens": 50}
            found = [
                client.post(f"{address}/v1/completions", json=body).json()["choices"][0]
                for _ in range(2)
            ]
        assert found[0]["text"] == ("so be it</query>" if include else "so be it")
        assert [choice["stop_reason"] for choice in found] == ["</query>", None]
        assert [choice["finish_reason"] for choice in found] == ["stop", "stop"]
        pieces = found[0]["logprobs"]
        assert "".join(pieces["tokens"]) == "so be it</query>"
        assert pieces["text_offset"][-1] == len("".join(pieces["tokens"][:-1]))

    def test_without_a_seed_draws_differ(self, post: Post) -> None:
        body = TEXT | {"temperature": 2.0, "max_tokens": 8}
        texts = {post("/completions", body).json()["choices"][0]["text"] for _ in range(3)}
        assert len(texts) > 1
        seeded = {
            post("/completions", body | {"seed": -3}).json()["choices"][0]["text"] for _ in range(3)
        }
        assert len(seeded) == 1

    def test_models_and_health(self, url: str, client: httpx2.Client) -> None:
        (model,) = client.get(f"{url}/models").json()["data"]
        assert (model["id"], model["max_model_len"]) == ("m", 1024)
        base = url.removesuffix("/v1")
        for path in OPEN_PATHS:
            assert client.get(base + path).status_code == 200


class TestLimits:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"prompt": []}, "prompt"),
            ({"prompt": [[]]}, "prompt"),
            ({"prompt": ""}, "0 tokens"),
            ({"prompt": [10**9]}, "token ids are 0 to"),
            ({"prompt": [2**70]}, "prompt"),
            ({"prompt": [-1]}, "prompt"),
            ({"prompt": ["a"] * 65}, "prompt"),
            ({"prompt": None}, "prompt"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": 1.5}, "max_tokens"),
            ({"temperature": -1}, "temperature"),
            ({"temperature": 1e9}, "temperature"),
            ({"temperature": "hot"}, "temperature"),
            ({"seed": 2**63}, "seed"),
            ({"stop": ""}, "stop"),
            ({"stop": ["a"] * 17}, "stop"),
            ({"stop": "é" * 33}, "stop"),
            ({"stream": True}, "stream"),
            ({"n": 2}, "n"),
            ({"top_p": 0.9}, "top_p"),
            ({"top_k": 5}, "top_k"),
            ({"presence_penalty": 0.1}, "presence_penalty"),
            ({"logprobs": 5}, "logprobs"),
            ({"logit_bias": {"5": 1}}, "logit_bias: is not supported"),
        ],
    )
    def test_what_cannot_be_done_is_refused(
        self, post: Post, change: dict[str, Any], said: str
    ) -> None:
        answer = post("/completions", TEXT | change)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert said in error["message"]
        assert error["type"] == "invalid_request_error"

    @pytest.mark.parametrize(
        "change",
        [
            {"messages": []},
            {"messages": [{"role": "robot", "content": "x"}]},
            {"messages": [{"role": "user"}]},
            {"messages": [{"role": "user", "content": "x"}] * 257},
            {"messages": [{"role": "user", "content": "x", "name": "y"}]},
            {"tools": []},
            {"top_logprobs": 3},
        ],
    )
    def test_a_bad_chat_is_refused(self, post: Post, change: dict[str, Any]) -> None:
        assert post("/chat/completions", CHAT | change).status_code == 400

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe",
            b'{"model": "m", "prompt": "\\ud800"}',
            b'{"model": "m", "prompt": "a", "temperature": NaN}',
            b'{"model": "m", "prompt": "a", "temperature": 1e999}',
            b'{"model": "m", "prompt": ' + b"[" * 20_000,
        ],
    )
    def test_hostile_bytes_are_refused_and_the_next_request_is_served(
        self, post: Post, body: bytes
    ) -> None:
        assert post("/completions", body).status_code == 400
        assert post("/completions", TEXT | {"max_tokens": 1}).status_code == 200

    def test_a_body_without_end(self, post: Post) -> None:
        answer = post("/completions", b" " * (model_server.MAX_BODY_BYTES + 1))
        assert answer.status_code == 413

    def test_a_body_that_does_not_come(
        self, local: LocalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model_server, "_BODY_SECONDS", 0.01)
        sent: list[Any] = []

        async def never() -> Any:
            await asyncio.Event().wait()

        async def send(event: Any) -> None:
            sent.append(event)

        app = ModelServer(local, local.tokenizer, "m")
        scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
        asyncio.run(app(scope, never, send))
        assert sent[0]["status"] == 408

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/completions", 405),
            ("POST", "/models", 405),
            ("POST", "/embeddings", 404),
            ("GET", "/completions/", 404),
        ],
    )
    def test_other_paths_and_methods(
        self, url: str, client: httpx2.Client, method: str, path: str, status: int
    ) -> None:
        assert client.request(method, url + path).status_code == status

    def test_another_model_is_not_here(self, post: Post) -> None:
        answer = post("/chat/completions", CHAT | {"model": "gpt"})
        assert answer.status_code == 404
        assert "this is 'm'" in answer.json()["error"]["message"]


class SlowModel(ScriptedModel):
    """Answers when it is told to, and knows whom it was asked by in vain."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(tokenizer, ["done"])
        self.asked = threading.Event()
        self.gone = threading.Event()
        self.go = threading.Event()

    async def complete(self, prompt_token_ids: Sequence[int], sampling: Sampling) -> Completion:
        self.asked.set()
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.gone.set()
            raise
        return await super().complete(prompt_token_ids, sampling)


def test_a_client_that_leaves_takes_its_request_along(
    tiny_tokenizer: PreTrainedTokenizerFast, client: httpx2.Client
) -> None:
    model = SlowModel(tiny_tokenizer)
    with running(ModelServer(model, tiny_tokenizer, "m")) as address:
        with pytest.raises(httpx2.ReadTimeout):
            client.post(f"{address}/v1/completions", json=TEXT, timeout=0.1)
        assert model.gone.wait(2)
        assert client.get(f"{address}/health/ready").json()["running"] == 0


def test_too_many_requests_are_told_to_come_again(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_server, "MAX_REQUESTS", 1)
    model = SlowModel(tiny_tokenizer)

    async def ask(address: str) -> list[httpx2.Response]:
        async with httpx2.AsyncClient(timeout=5) as opened:
            first = asyncio.create_task(opened.post(f"{address}/v1/completions", json=TEXT))
            await asyncio.to_thread(model.asked.wait, 2)
            second = await opened.post(f"{address}/v1/completions", json=TEXT)
            model.go.set()
            return [await first, second, await opened.post(f"{address}/v1/completions", json=TEXT)]

    with running(ModelServer(model, tiny_tokenizer, "m")) as address:
        answers = asyncio.run(ask(address))
    assert [answer.status_code for answer in answers] == [200, 503, 200]
    assert answers[1].headers["Retry-After"] == "1"


def test_what_comes_while_the_model_computes_is_decoded_together(
    random_model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalModel(random_model.model, random_model.tokenizer)
    sizes: list[int] = []
    decode = local._decoder.complete

    def slowly(requests: Sequence[Request]) -> list[Completion]:
        sizes.append(len(requests))
        time.sleep(0.15)
        return decode(requests)

    monkeypatch.setattr(local._decoder, "complete", slowly)

    async def together(address: str) -> list[str]:
        model = chat_model(f"{address}/v1", tmp_path)
        asked = (model.chat([Message("user", str(n))], Sampling(4)) for n in range(12))
        return await asyncio.gather(*asked)

    with running(ModelServer(local, local.tokenizer, "m")) as address:
        answers = asyncio.run(together(address))
    assert sum(sizes) == 12
    assert len(sizes) <= 3
    monkeypatch.undo()
    alone = [asyncio.run(local.chat([Message("user", str(n))], Sampling(4))) for n in range(12)]
    assert answers == alone


def test_a_failing_model_is_a_server_error_that_tells_nothing(
    tiny_tokenizer: PreTrainedTokenizerFast,
    client: httpx2.Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = ScriptedModel(tiny_tokenizer, ["fine"], fail_at=1)

    async def broken(*_: object) -> Completion:
        raise RuntimeError("secret path /home/me")

    with running(ModelServer(model, tiny_tokenizer, "m")) as address:
        with monkeypatch.context() as patch:
            patch.setattr(model, "complete", broken)
            answer = client.post(f"{address}/v1/completions", json=TEXT)
        fine = client.post(f"{address}/v1/completions", json=TEXT)
        behind = client.post(f"{address}/v1/completions", json=TEXT)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret path" in caplog.text
    assert [fine.status_code, behind.status_code] == [200, 502]


class TestAccess:
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
        self,
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
        self, guarded: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        address, _ = guarded
        monkeypatch.setenv("MODEL_KEY", KEY)
        model = chat_model(f"{address}/v1", tmp_path, key_env="MODEL_KEY")
        assert isinstance(asyncio.run(model.chat([Message("user", "a")], Sampling(2))), str)
        with pytest.raises(InputError, match=r"401: .*check url, model and key"):
            asyncio.run(
                chat_model(f"{address}/v1", tmp_path).chat([Message("user", "b")], Sampling(2))
            )

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
        self, url: str, client: httpx2.Client, host: str, status: int
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
    def test_where_a_server_may_bind(self, host: str, loopback: bool) -> None:
        assert is_loopback(host) is loopback
        check_bind(host, "key")
        if loopback:
            check_bind(host, None)
        else:
            with pytest.raises(InputError, match="--key-variable"):
                check_bind(host, None)

    @pytest.mark.parametrize("value", ["", "  ", "a b", "é", "a\tb"])
    def test_a_key_that_cannot_stand_in_a_header(
        self, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MODEL_KEY", value)
        with pytest.raises(InputError, match="MODEL_KEY"):
            read_key("MODEL_KEY")
        assert read_key(None) is None


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


def test_a_reason_to_stop_survives_the_wire(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    outputs = ["a</query>", "an end", "w " * 90]
    expected = [StopReason.STOP_STRING, StopReason.END_OF_SEQUENCE, StopReason.LENGTH]
    model = ScriptedModel(tiny_tokenizer, outputs)
    with running(ModelServer(model, tiny_tokenizer, "m")) as address:
        served = token_model(f"{address}/v1", tmp_path, tiny_tokenizer)
        for number, reason in enumerate(expected):
            sampling = Sampling(30, stop=("</query>",), seed=number)
            there = asyncio.run(served.complete([5], sampling))
            assert there == model.completions[number]
            assert there.stop_reason is reason
