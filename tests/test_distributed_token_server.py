"""verl's rollout servers as a language model; the agents' episodes are those of a local model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from searchrl.agents.agent import Draw
from searchrl.agents.s3 import S3Agent, S3Options
from searchrl.data.questions import Question
from searchrl.distributed.gathering import GatheringRetriever
from searchrl.distributed.token_server import ServedPolicy
from searchrl.errors import InfrastructureError, InputError
from searchrl.models.local import LocalModel
from searchrl.models.protocol import Completion, Sampling, StopReason
from searchrl.retrieval.protocol import Hit
from searchrl.serving.client import HttpRetriever
from searchrl.transport.errors import UnavailableError
from tests.fake_time import run_fast
from tests.fakes import FailingRetriever, ListRetriever, passages

DEFAULTS = {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}


@dataclass
class Output:
    token_ids: list[int]
    log_probs: list[float] | None
    stop_reason: str | None = "completed"
    extra_fields: dict[str, Any] = field(default_factory=dict)


class Servers:
    """Answers as given, or as a local model does; notes what it is asked."""

    def __init__(self, answer: Output | Exception | LocalModel) -> None:
        self.asked: list[tuple[str, list[int], dict[str, Any]]] = []
        self._answer = answer

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> Output:
        self.asked.append((request_id, prompt_ids, dict(sampling_params)))
        if isinstance(self._answer, Exception):
            raise self._answer
        if isinstance(self._answer, Output):
            return self._answer
        sampling = Sampling(
            sampling_params["max_tokens"],
            sampling_params["temperature"],
            tuple(sampling_params["stop"]),
            sampling_params["seed"],
        )
        made = await self._answer.complete(prompt_ids, sampling)
        version = {"min_global_steps": len(self.asked), "max_global_steps": len(self.asked)}
        return Output(list(made.token_ids), list(made.logprobs), extra_fields=version)


def policy(servers: Servers, model: LocalModel, max_length: int = 1024) -> ServedPolicy:
    return ServedPolicy(servers, model.tokenizer, max_length, "episode 7", DEFAULTS)


def complete(
    answer: Output | Exception,
    model: LocalModel,
    sampling: Sampling,
    prompt: Sequence[int] = (5, 6),
) -> Completion:
    return asyncio.run(policy(Servers(answer), model).complete(prompt, sampling))


def test_an_agent_makes_the_episode_it_makes_with_the_model_itself(
    random_model: LocalModel,
) -> None:
    options = S3Options(style="brief", max_response_tokens=12, max_turns=2)
    question = Question("q", "Who wrote it?", ("somebody",))
    servers = Servers(random_model)
    served = policy(servers, random_model)

    def attempt(model: Any) -> Any:
        agent = S3Agent(model, ListRetriever(passages(20)), options)
        return asyncio.run(agent.run(question, Draw(1.0, 3)))

    here, there = attempt(random_model), attempt(served)
    assert there.token_ids == here.token_ids
    assert there.trainable_mask == here.trainable_mask
    assert there.logprobs == pytest.approx(here.logprobs, abs=1e-5)
    assert len(servers.asked) == 3
    assert {request for request, _, _ in servers.asked} == {"episode 7"}
    assert served.versions == {"min_global_steps": 1, "max_global_steps": 3}
    for _, _, asked in servers.asked:
        assert asked["top_p"] == 1.0
        assert asked["temperature"] == 1.0
        assert asked["include_stop_str_in_output"] is True


def test_what_an_engine_says_after_a_stop_string_is_not_the_models(
    random_model: LocalModel,
) -> None:
    said = random_model.encode("so <query>a</query> and more </query>")
    end = len(random_model.encode("so <query>a</query>"))
    logprobs = [-float(n) for n in range(len(said))]
    made = complete(Output(said, logprobs), random_model, Sampling(100, 1.0, ("</query>",)))
    assert made.text.endswith("</query>")
    assert "more" not in made.text
    assert len(made.token_ids) <= end
    assert made.logprobs == tuple(logprobs[: len(made.token_ids)])
    assert made.stop_reason is StopReason.STOP_STRING


def test_the_reason_an_answer_ended(random_model: LocalModel) -> None:
    end = random_model.tokenizer.eos_token_id
    assert isinstance(end, int)
    ended = complete(Output([7, end], [-1.0, -1.0]), random_model, Sampling(2))
    assert ended.stop_reason is StopReason.END_OF_SEQUENCE
    cut = complete(Output([7, 8], [-1.0, -1.0]), random_model, Sampling(2))
    assert cut.stop_reason is StopReason.LENGTH


@pytest.mark.parametrize(
    "answer",
    [
        RuntimeError("The actor died unexpectedly"),
        Output([7], [-1.0], "aborted"),
        Output([7], [-1.0], "abort"),
        Output([], []),
    ],
)
def test_a_server_that_fails_is_infrastructure(
    answer: Output | Exception, random_model: LocalModel
) -> None:
    with pytest.raises(InfrastructureError, match="rollout server"):
        complete(answer, random_model, Sampling(4))


def test_what_cannot_be_trained_on_is_refused(random_model: LocalModel) -> None:
    with pytest.raises(InputError, match="calculate_log_probs=True"):
        complete(Output([7], None), random_model, Sampling(4))
    with pytest.raises(InputError, match="leaves no room"):
        complete(Output([7], [-1.0]), random_model, Sampling(4), [5] * 1024)


class CountingRetriever(ListRetriever):
    """Notes the calls as they come in, and takes its time over each."""

    def __init__(self) -> None:
        super().__init__(passages(50))
        self.batches: list[int] = []

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.batches.append(len(queries))
        for _ in range(3):
            await asyncio.sleep(0)
        return await super().search(queries, k)


def test_searches_of_one_moment_are_one_call() -> None:
    pool = passages(50)
    answers = {f"q{n}": [pool[n]] for n in range(9)}

    async def run() -> tuple[CountingRetriever, list[list[list[Hit]]]]:
        retriever = CountingRetriever()
        retriever._answers = answers
        gathering = GatheringRetriever(retriever)
        found = await asyncio.gather(*(gathering.search([f"q{n}"], 1) for n in range(8)))
        found.append(await gathering.search(["q8"], 1))
        return retriever, found

    retriever, found = asyncio.run(run())
    assert retriever.batches == [8, 1]
    ids = [[hit.passage.id for hit in hits] for [hits] in found]
    assert ids == [[pool[n].id] for n in range(9)]


def test_a_failed_call_fails_its_searches_and_no_later_one() -> None:
    class Once(FailingRetriever):
        async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            if not self.calls:
                self.calls.append(("", k))
                raise InfrastructureError("retriever at example:2 did not answer")
            return await ListRetriever.search(self, queries, k)

    async def run() -> list[Any]:
        gathering = GatheringRetriever(Once(passages(5)))
        both = (gathering.search(["a"], 1), gathering.search(["b"], 1))
        failed = await asyncio.gather(*both, return_exceptions=True)
        return [*failed, await gathering.search(["c"], 1)]

    first, second, third = asyncio.run(run())
    assert isinstance(first, InfrastructureError)
    assert isinstance(second, InfrastructureError)
    assert len(third[0]) == 1


def test_a_lone_search_outlasts_an_outage() -> None:
    """Its client alone would give up after four tries, in which a breaker sees no outage yet."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if 0 < asyncio.get_running_loop().time() < 45:
            raise httpx2.ConnectError("refused")
        row = [{"document": {"id": "a", "contents": "a"}, "score": 1.0}]
        return httpx2.Response(200, json={"result": [row]})

    async def search(gathered: bool) -> list[list[Hit]]:
        client = HttpRetriever(
            "http://r.test/retrieve", cache=0, transport=httpx2.MockTransport(answer)
        )
        await client.search(["before"], 1)
        await asyncio.sleep(1)
        retriever = GatheringRetriever(client) if gathered else client
        return await retriever.search(["during"], 1)

    [[hit]], seconds = run_fast(search(gathered=True))
    assert hit.passage.id == "a"
    assert 44 < seconds < 60
    with pytest.raises(UnavailableError):
        run_fast(search(gathered=False))
