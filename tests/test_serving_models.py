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
from searchrl.errors import InputError
from searchrl.models.drawing import Row
from searchrl.models.local import LocalModel
from searchrl.models.protocol import Completion, LanguageModel, Message, Sampling, StopReason
from searchrl.retrieval.protocol import Hit
from searchrl.serving import model_server
from searchrl.serving.model_server import ModelServer
from tests.fakes import ListRetriever, ScriptedModel, passages
from tests.model_server_fixtures import chat_model, running, token_model

HITS = tuple(Hit(passage, 1.0) for passage in passages(3))
QUESTION = Question("q", "Where is it?", ("there",))
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Where?"}]}
TEXT = {"model": "m", "prompt": "Where?"}
JSON = {"content-type": "application/json"}
Post = Callable[..., httpx2.Response]


@pytest.fixture(scope="module")
def local(random_model: LocalModel) -> LocalModel:
    return LocalModel(random_model.model, random_model.tokenizer)


@pytest.fixture(scope="module")
def url(local: LocalModel) -> Iterator[str]:
    with running(ModelServer(local, local.tokenizer, "m")) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=10) as opened:
        yield opened


@pytest.fixture
def post(url: str, client: httpx2.Client) -> Post:
    def send(path: str, body: Any, **headers: str) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return client.post(url + path, content=content, headers=JSON | headers)

    return send


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
        for path in ("/health", "/health/live", "/health/ready"):
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
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "headers": headers,
        }  # fmt: skip
        asyncio.run(app(scope, never, send))
        assert sent[0]["status"] == 408

    @pytest.mark.parametrize(
        "headers",
        [{"content-type": "text/plain"}, {"content-encoding": "gzip"}],
    )
    def test_only_unpacked_json_is_taken(self, post: Post, headers: dict[str, str]) -> None:
        assert post("/completions", TEXT, **headers).status_code == 415

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
    admit = local._decoder.admit

    def slowly(rows: Sequence[Row]) -> int:
        sizes.append(len(rows))
        time.sleep(0.15)
        return admit(rows)

    monkeypatch.setattr(local._decoder, "admit", slowly)

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
