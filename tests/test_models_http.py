"""Served models against scripted servers: what is sent, what is believed, what is paid for once."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from searchrl.agents.generator import Generator
from searchrl.errors import InfrastructureError, InputError, IntegrityError
from searchrl.models.counting import estimate_chat, estimate_tokens
from searchrl.models.http import HttpChatModel, HttpLanguageModel, ServedModel, open_chat_model
from searchrl.models.options import HttpModelOptions
from searchrl.models.protocol import Message, Sampling, StopReason, cut_at_stop
from searchrl.models.replies import ReplyStore, Usage
from searchrl.retrieval.protocol import Hit
from searchrl.rewards.judge import Judge
from searchrl.transport import store as store_module
from tests.fake_time import run_fast
from tests.fakes import passages

URL = "http://models.test/v1"
NINE = Sampling(9)
ASKED = [Message("system", "Be brief."), Message("user", "Where?")]
Handler = Callable[[httpx2.Request], httpx2.Response]


def chat_reply(content: Any = "Paris", reason: Any = "stop", **more: Any) -> dict[str, Any]:
    return {
        "choices": [{"message": {"content": content}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 3},
        **more,
    }


class Server:
    """Answers every request with one reply and records what was asked."""

    def __init__(self, reply: Any, status: int = 200) -> None:
        self.reply, self.status = reply, status
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return httpx2.Response(self.status, json=self.reply)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


def served(server: Handler, store: Path, **options: Any) -> ServedModel:
    values = {"kind": "http", "url": URL, "model": "big", **options}
    transport = httpx2.MockTransport(server)
    return ServedModel(HttpModelOptions.model_validate(values), ReplyStore(store), transport)


def chat(server: Handler, store: Path, sampling: Sampling = NINE, **options: Any) -> str:
    model = HttpChatModel(served(server, store, **options))
    return run_fast(model.chat(ASKED, sampling))[0]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "run" / "replies.sqlite"


class TestChat:
    def test_what_is_sent(self, store: Path) -> None:
        server = Server(chat_reply())
        assert chat(server, store, Sampling(9, 0.5, ("END",), 7)) == "Paris"
        (request,) = server.requests
        assert str(request.url) == f"{URL}/chat/completions"
        assert "Authorization" not in request.headers
        assert server.bodies == [
            {
                "model": "big",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Where?"},
                ],
                "max_tokens": 9,
                "temperature": 0.5,
                "seed": 7,
                "stop": ["END"],
            }
        ]

    def test_fields_are_added_and_left_out_for_servers_that_differ(self, store: Path) -> None:
        server = Server(chat_reply())
        added = {"max_completion_tokens": 500, "chat_template_kwargs": {"enable_thinking": False}}
        chat(server, store, extra_body=added, leave_out=("max_tokens", "seed", "temperature"))
        (body,) = server.bodies
        assert body.keys() == {"model", "messages", *added}
        assert body["chat_template_kwargs"] == {"enable_thinking": False}

    def test_the_key_is_sent_and_shown_nowhere(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("A_KEY", " sk-CANARY \n")
        server = Server({"error": "key sk-CANARY has no credit"}, status=400)
        with pytest.raises(InfrastructureError) as caught:
            chat(server, store, key_env="A_KEY")
        assert server.requests[0].headers["Authorization"] == "Bearer sk-CANARY"
        assert "CANARY" not in str(caught.value)
        server.status, server.reply = 200, chat_reply()
        chat(server, store, key_env="A_KEY")
        assert b"CANARY" not in store.read_bytes()

    @pytest.mark.parametrize("value", [None, "", "  ", "sk-a\nb", "sk-ü", "sk a"])
    def test_a_key_that_cannot_be_sent_names_its_variable(
        self, value: str | None, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("A_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("A_KEY", value)
        with pytest.raises(InputError, match="variable A_KEY has to hold a key") as caught:
            chat(Server(chat_reply()), store, key_env="A_KEY")
        assert "sk" not in str(caught.value)

    def test_a_stop_string_is_no_part_of_the_reply_wherever_it_was_cut(self, store: Path) -> None:
        sampling = Sampling(9, stop=("</a>", "\n"))
        assert chat(Server(chat_reply("x</a>")), store, sampling) == "x"
        assert chat(Server(chat_reply("y\n</a>")), store, sampling, model="2") == "y"
        assert chat(Server(chat_reply("z")), store, sampling, model="3") == "z"
        assert cut_at_stop("a|b|", ("|", "b")) == "a"

    def test_half_a_surrogate_pair_does_not_stop_a_question(self, store: Path) -> None:
        server = Server(chat_reply())
        model = HttpChatModel(served(server, store))
        assert run_fast(model.chat([Message("user", "a\ud800b")], Sampling(9)))[0] == "Paris"
        assert server.bodies[0]["messages"][0]["content"] == "a?b"

    @pytest.mark.parametrize(
        "reply",
        [
            {},
            {"choices": []},
            {"choices": "no"},
            {"choices": ["no"]},
            {"choices": chat_reply()["choices"] * 2},
            {"choices": [{"finish_reason": "stop"}]},
            {"choices": [{"finish_reason": "stop", "message": "no"}]},
            {"error": {"message": "overloaded"}},
            chat_reply(None),
            chat_reply(3),
            chat_reply([{"type": "text", "text": "Paris"}]),
            chat_reply("Par", "content_filter"),
            chat_reply("", "tool_calls"),
            chat_reply("Paris", None),
        ],
    )
    def test_a_reply_that_is_none_is_a_failure_and_is_not_kept(
        self, reply: dict[str, Any], store: Path
    ) -> None:
        with pytest.raises(InfrastructureError, match=r"models\.test"):
            chat(Server(reply), store)
        assert not store.exists()
        assert chat(Server(chat_reply("Paris")), store) == "Paris"

    def test_an_empty_reply_is_an_answer(self, store: Path) -> None:
        assert chat(Server(chat_reply("")), store) == ""
        # A reasoning model that spent its budget before the answer.
        assert chat(Server(chat_reply(None, "length")), store, model="other") == ""


class TestStore:
    def test_a_request_is_paid_for_once(self, store: Path) -> None:
        server = Server(chat_reply())
        prices = {"prompt_price": 2.0, "completion_price": 10.0}
        for _ in range(3):
            assert chat(server, store, **prices) == "Paris"
        assert chat(server, store, Sampling(9, seed=1), **prices) == "Paris"
        assert len(server.requests) == 2
        (usage,) = ReplyStore(store).usage()
        assert usage == Usage("big", 2, 2, 40, 6, pytest.approx(140e-6))
        assert str(usage) == "big: 2 requests (2 reused), 40 + 6 tokens, cost 0.0001"

    @pytest.mark.parametrize(
        "other",
        [{"model": "small"}, {"url": "http://other.test/v1"}, {"extra_body": {"top_k": 1}}],
    )
    def test_another_request_is_another_reply(self, other: dict[str, Any], store: Path) -> None:
        assert chat(Server(chat_reply("one")), store) == "one"
        assert chat(Server(chat_reply("two")), store, **other) == "two"
        assert chat(Server(chat_reply("three")), store) == "one"

    @pytest.mark.parametrize("usage", [None, "many", {}, {"prompt_tokens": "x"}])
    def test_a_server_that_does_not_count_costs_nothing(self, usage: Any, store: Path) -> None:
        assert chat(Server(chat_reply(usage=usage)), store, prompt_price=5.0) == "Paris"
        assert ReplyStore(store).usage() == [Usage("big", 1)]

    def test_the_oldest_go_and_the_account_stays(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "MAX_ANSWERS", 3)
        kept = ReplyStore(store)
        for number in range(5):
            kept.put(f"k{number}", {"n": number}, Usage("m", 1, 0, 10))
        found = [kept.get(f"k{number}", "m") for number in range(5)]
        assert found == [None, None, {"n": 2}, {"n": 3}, {"n": 4}]
        assert kept.usage() == [Usage("m", 5, 3, 50)]

    def test_a_reply_and_its_cost_are_kept_together_or_not_at_all(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = ReplyStore(store)
        kept.put("a", {"n": 1}, Usage("m", 1))

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ReplyStore, "_add", killed)
            with pytest.raises(KeyboardInterrupt):
                kept.put("b", {"n": 2}, Usage("m", 1))
        assert kept.get("b", "m") is None
        assert kept.usage() == [Usage("m", 1)]

    @pytest.mark.parametrize("content", [b"not a database, but long enough" * 40, b"SQLite"])
    def test_a_file_that_is_none_is_named(self, content: bytes, store: Path) -> None:
        store.parent.mkdir()
        store.write_bytes(content)
        server = Server(chat_reply())
        with pytest.raises(IntegrityError, match=re.escape(str(store))):
            chat(server, store)
        assert server.requests == []


def completion_reply(token_ids: Any, logprobs: Any = None, **more: Any) -> dict[str, Any]:
    values = [-0.5] * len(token_ids) if logprobs is None else logprobs
    choice = {
        "text": "",
        "finish_reason": "stop",
        "token_ids": token_ids,
        "logprobs": {"token_logprobs": values},
        **more,
    }
    return {"choices": [choice]}


class TestTokens:
    @pytest.fixture
    def complete(self, tiny_tokenizer: PreTrainedTokenizerFast, store: Path) -> Any:
        def call(reply: Mapping[str, Any], prompt: int = 3, **options: Any) -> Any:
            server = Server(reply)
            model = HttpLanguageModel(served(server, store, **options), tiny_tokenizer)
            sampling = Sampling(50, 1.0, ("</query>",), 3)
            return run_fast(model.complete([5] * prompt, sampling))[0], server

        return call

    def test_token_ids_go_and_come(self, complete: Any, tiny_tokenizer: Any) -> None:
        token_ids = tiny_tokenizer.encode("a</query>")
        completion, server = complete(completion_reply(token_ids, stop_reason="</query>"))
        assert completion.token_ids == tuple(token_ids)
        assert completion.logprobs == (-0.5,) * len(token_ids)
        assert completion.text == "a</query>"
        assert completion.stop_reason is StopReason.STOP_STRING
        assert str(server.requests[0].url) == f"{URL}/completions"
        assert server.bodies == [
            {
                "model": "big",
                "prompt": [5, 5, 5],
                "max_tokens": 50,
                "temperature": 1.0,
                "seed": 3,
                "stop": ["</query>"],
                "logprobs": 1,
                "return_token_ids": True,
                "include_stop_str_in_output": True,
            }
        ]

    @pytest.mark.parametrize(
        ("more", "reason"),
        [
            ({"finish_reason": "length"}, StopReason.LENGTH),
            ({"stop_reason": None}, StopReason.END_OF_SEQUENCE),
            ({"stop_reason": 151645}, StopReason.END_OF_SEQUENCE),
            ({}, StopReason.END_OF_SEQUENCE),
        ],
    )
    def test_why_it_ended(self, complete: Any, more: dict[str, Any], reason: StopReason) -> None:
        assert complete(completion_reply([7, 8], **more))[0].stop_reason is reason

    def test_a_completion_is_asked_for_within_the_context(self, complete: Any) -> None:
        _, server = complete(completion_reply([7]), prompt=90, max_length=100)
        assert server.bodies[0]["max_tokens"] == 10
        for length in (0, 100, 101):
            with pytest.raises(InputError, match=f"{length} tokens leaves no room"):
                complete(completion_reply([7]), prompt=length, max_length=100)

    @pytest.mark.parametrize(
        "reply",
        [
            completion_reply([7, 8], [-0.5]),
            completion_reply([7], [None]),
            completion_reply([7], logprobs="no"),
            completion_reply(["7"]),
            completion_reply("78"),
        ],
    )
    def test_tokens_that_do_not_add_up_are_a_failure(self, complete: Any, reply: Any) -> None:
        with pytest.raises(InfrastructureError, match="token ids"):
            complete(reply)

    def test_a_server_without_token_ids_is_not_for_searchers(self, complete: Any) -> None:
        with pytest.raises(InputError, match="returns no token ids"):
            complete({"choices": [{"text": "a", "finish_reason": "stop"}]})


class TestCounting:
    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("", 0),
            ("the cat", 2),
            ("Constantinople", 4),
            ("1994", 4),
            ("a.\n", 3),
            ("日本", 3),
            ("Москва", 6),
        ],
    )
    def test_an_estimate(self, text: str, tokens: int) -> None:
        assert estimate_tokens(text) == tokens

    @settings(max_examples=30)
    @given(st.text(st.characters(codec=None, exclude_categories=[]), max_size=60), st.text())
    def test_more_text_is_never_fewer_tokens(self, text: str, more: str) -> None:
        assert estimate_tokens(text) <= estimate_tokens(text + more)
        assert estimate_tokens(text) < estimate_chat([Message("user", text)])

    def test_a_tokenizer_counts_exactly(
        self, store: Path, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        model = HttpChatModel(served(Server(chat_reply()), store), tiny_tokenizer)
        assert model.count("a b") == len(tiny_tokenizer.encode("a b"))
        rendered = tiny_tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in ASKED], add_generation_prompt=True
        )
        assert model.count_chat(ASKED) == len(rendered["input_ids"])

    def test_a_generator_keeps_within_an_estimated_context(self, store: Path) -> None:
        server = Server(chat_reply())
        model = HttpChatModel(served(server, store, max_length=700))
        generator = Generator(model, "big", max_answer_tokens=100)
        hits = [Hit(passage, 1.0) for passage in passages(3, words=500)]
        assert run_fast(generator.answer("Where?", hits))[0] == "Paris"
        (body,) = server.bodies
        messages = [Message(row["role"], row["content"]) for row in body["messages"]]
        assert 500 < estimate_chat(messages) <= 600
        assert body["messages"][-1] == {"role": "user", "content": "Where?"}


def test_a_judge_behind_a_server(store: Path) -> None:
    judge = Judge(HttpChatModel(served(Server(chat_reply("Yes.")), store)))
    assert run_fast(judge.check("the City of Light", ["Paris"]))[0] is True


def test_a_dead_server_is_no_verdict_and_no_answer(store: Path) -> None:
    def dead(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    model = HttpChatModel(served(dead, store, outage=0))

    async def ask() -> list[object]:
        asked = (Judge(model).check("a", ["b"]), Generator(model, "m").answer("a", []))
        return list(await asyncio.gather(*asked, return_exceptions=True))

    results, _ = run_fast(ask())
    assert all(isinstance(result, InfrastructureError) for result in results)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "models.test", ""])
def test_a_url_without_its_scheme_is_refused(url: str, store: Path) -> None:
    options = HttpModelOptions(kind="http", url=url, model="big")
    with pytest.raises(InputError, match="expected http"):
        open_chat_model(options, ReplyStore(store))


def test_what_changes_answers_is_in_the_name() -> None:
    def name(**more: Any) -> str:
        return HttpModelOptions(kind="http", url=URL, model="big", **more).name

    assert name() == name(prompt_price=3.0, concurrency=2) == f"big at {URL}"
    others = [name(**{key: value}) for key, value in (
        ("tokenizer", "x"), ("max_length", 9), ("extra_body", {"a": 1}), ("leave_out", ("seed",)),
    )]  # fmt: skip
    assert len({name(), *others}) == 5
