"""One model on several servers: balanced, failed over, waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from searchrl.errors import InfrastructureError
from searchrl.models.http import open_chat_model
from searchrl.models.options import HttpModelOptions
from searchrl.models.protocol import ChatModel, Message, Sampling
from searchrl.models.replicas import Clock, ReplicatedChatModel
from searchrl.models.replies import ReplyStore

ASKED, GREEDY = [Message("user", "Who?")], Sampling(8)


class Server(ChatModel):
    """Answers with its name while it is up, after as many turns of the loop as it is told."""

    def __init__(self, name: str, turns: int = 3) -> None:
        self.name, self.turns = name, turns
        self.up, self.asked, self.most, self._busy = True, 0, 0, 0

    @property
    def max_length(self) -> int:
        return 100

    def count(self, text: str) -> int:
        return len(text)

    def count_chat(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content) for message in messages)

    async def chat(self, messages: Sequence[Message], sampling: Sampling) -> str:
        self.asked, self._busy = self.asked + 1, self._busy + 1
        self.most = max(self.most, self._busy)
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            if not self.up:
                raise InfrastructureError(f"{self.name} is down")
            return self.name
        finally:
            self._busy -= 1


class Time:
    """Passes only while somebody sleeps; may do something at a moment."""

    def __init__(self) -> None:
        self.now, self.then = 0.0, lambda: None

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.then()
        await asyncio.sleep(0)

    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)


def ask(model: ReplicatedChatModel, times: int) -> list[str]:
    async def run() -> list[str]:
        return await asyncio.gather(*(model.chat(ASKED, GREEDY) for _ in range(times)))

    return asyncio.run(run())


def test_requests_go_where_the_fewest_are() -> None:
    servers = [Server("a"), Server("b"), Server("c")]
    ask(ReplicatedChatModel(servers, 60), 12)
    assert [server.asked for server in servers] == [4, 4, 4]
    assert [server.most for server in servers] == [4, 4, 4]


def test_a_server_that_dies_loses_no_request() -> None:
    time, (a, b) = Time(), (Server("a"), Server("b"))
    model = ReplicatedChatModel([a, b], 60, time.clock())
    a.up = False
    assert ask(model, 6) == ["b"] * 6
    assert a.asked == 3
    # It rests, and is tried again later.
    assert ask(model, 2) == ["b"] * 2
    assert a.asked == 3
    time.now, a.up = 11.0, True
    assert sorted(ask(model, 2)) == ["a", "b"]


def test_an_outage_of_all_is_waited_for() -> None:
    time, (a, b) = Time(), (Server("a"), Server("b"))
    a.up = b.up = False

    def recover() -> None:
        b.up = time.now >= 25

    time.then = recover
    assert ask(ReplicatedChatModel([a, b], 60, time.clock()), 3) == ["b"] * 3
    assert 25 <= time.now < 60


def test_an_outage_that_lasts_is_an_infrastructure_error() -> None:
    time, (a, b) = Time(), (Server("a"), Server("b"))
    a.up = b.up = False
    with pytest.raises(InfrastructureError, match="is down"):
        ask(ReplicatedChatModel([a, b], 60, time.clock()), 1)
    assert 60 <= time.now < 71


def test_a_recipe_names_them(tmp_path: Path) -> None:
    values = {"kind": "http", "url": "http://127.0.0.1:1/v1", "model": "m"}
    one = HttpModelOptions.model_validate(values)
    several = HttpModelOptions.model_validate({**values, "replicas": ["http://127.0.0.1:2/v1"]})
    # Who answers is the same model: what is known of it stays known.
    assert one.name == several.name
    store = ReplyStore(tmp_path / "r.sqlite")
    assert isinstance(open_chat_model(several, store), ReplicatedChatModel)
    assert not isinstance(open_chat_model(one, store), ReplicatedChatModel)
