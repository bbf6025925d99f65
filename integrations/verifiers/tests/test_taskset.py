"""Whole rollouts of the installed verifiers: tool server, model, state and scores."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import verifiers.v1 as vf
from searchrl_verifiers.search import SearchToolsetConfig, open_retriever
from searchrl_verifiers.taskset import SearchTaskConfig, SearchTasksetConfig, answer_of
from verifiers.v1.utils.loaders import load_taskset, taskset_config_type

from searchrl.data.passages import Passage
from searchrl.errors import InputError
from searchrl.retrieval.index import build_index

sys.path.insert(0, str(Path(__file__).parent))
PASSAGES = [
    Passage("a", "Arbon", "Arbon was founded in 1801."),
    Passage("b", "Chur", "Chur was founded in 1802."),
]


class _Model(BaseHTTPRequestHandler):
    """Says the year of the first passage it is shown."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        year = text.partition("founded in ")[2][:4]
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": f"It is <answer>{year}</answer>."},
                }
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    build_index(PASSAGES, tmp_path / "index")
    rows = [
        {"id": "q1", "question": "When was Chur founded?", "golden_answers": ["1802"]},
        {"id": "q2", "question": "When was Arbon founded?", "golden_answers": ["1900"]},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "questions.jsonl").write_text(text)
    return tmp_path


def rollouts(home: Path, model: str, search: SearchToolsetConfig) -> list[vf.Trace]:
    """A trace of every task."""
    config = SearchTasksetConfig(
        id="searchrl_verifiers",
        questions=home / "questions.jsonl",
        task=SearchTaskConfig(search=search),
    )
    agent = vf.Agent(
        vf.AgentConfig(
            model="stub",
            client=vf.EvalClientConfig(base_url=model),
            harness=vf.HarnessConfig(id="scripted_harness"),
            runtime=vf.SubprocessConfig(),
        )
    )

    async def run() -> list[vf.Trace]:
        async with agent:
            return [await agent.run(task) for task in load_taskset(config)]

    return asyncio.run(run())


def test_verifiers_finds_the_taskset_by_its_name() -> None:
    assert taskset_config_type("searchrl_verifiers") is SearchTasksetConfig


def test_questions_are_searched_answered_and_scored(home: Path, model: str) -> None:
    right, wrong = rollouts(home, model, SearchToolsetConfig(index=home / "index", k=1))
    assert right.errors == wrong.errors == []
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert right.task.key == "q1"
    assert right.metrics == {"f1": 1.0, "searches": 1.0, "substring_match": 1.0}
    assert right.last_reply == "It is <answer>1802</answer>."


def test_a_failed_search_is_no_reward(home: Path, model: str) -> None:
    nobody = SearchToolsetConfig(retriever="http://127.0.0.1:9/retrieve", seconds=1)
    for trace in rollouts(home, model, nobody):
        assert trace.rewards["exact_match"] is None
        assert trace.last_error is not None
        assert "127.0.0.1:9" in trace.last_error.message
        assert not trace.ok


def test_one_source_of_passages(home: Path) -> None:
    for config in (
        SearchToolsetConfig(),
        SearchToolsetConfig(index=home / "index", retriever="http://a/retrieve"),
    ):
        with pytest.raises(InputError, match="set one of"):
            open_retriever(config)


def test_the_answer_in_a_reply() -> None:
    assert answer_of("<answer>a</answer> no: <answer> b\n</answer>") == "b"
    assert answer_of(" 1802 ") == "1802"
