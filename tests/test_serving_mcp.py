"""The MCP tool, asked through the protocol's own client in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mcp import Client

from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.protocol import Retriever
from searchrl.serving.mcp_tool import search_server
from tests.command_line import refused
from tests.fakes import FailingRetriever
from tests.serving_fixtures import corpus


def connected(
    script: Callable[[Client], Awaitable[Any]], retriever: Retriever | None = None
) -> Any:
    async def run() -> Any:
        async with Client(search_server(retriever or Bm25Retriever(corpus()))) as client:
            return await script(client)

    return asyncio.run(run())


def call(arguments: dict[str, Any], retriever: Retriever | None = None) -> Any:
    return connected(lambda client: client.call_tool("search", arguments), retriever)


def test_there_is_one_tool_and_it_states_its_limits() -> None:
    [tool] = connected(lambda client: client.list_tools()).tools
    assert tool.name == "search"
    assert "no instruction" in tool.description
    properties = tool.input_schema["properties"]
    assert properties["query"]["maxLength"] == 4_096
    assert (properties["k"]["minimum"], properties["k"]["maximum"]) == (1, 100)
    assert properties["k"]["default"] == 5
    assert tool.input_schema["required"] == ["query"]
    assert tool.annotations.read_only_hint is True


def test_it_answers_with_the_passages_of_the_index() -> None:
    answer = call({"query": "Chur lake", "k": 2})
    [[best, _]] = asyncio.run(Bm25Retriever(corpus()).search(["Chur lake"], 2))
    found = answer.structured_content["result"]
    assert not answer.is_error
    assert len(found) == 2
    assert found[0] == {
        "id": best.passage.id, "title": "Chur", "text": best.passage.text, "score": best.score,
    }  # fmt: skip
    assert best.passage.text in answer.content[0].text


@pytest.mark.parametrize(
    "arguments", [{}, {"query": 3}, {"query": "x" * 4_097}, {"query": "a", "k": 0},
                  {"query": "a", "k": 101}, {"query": "a", "k": "many"}],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(arguments: dict[str, Any]) -> None:
    assert call(arguments).is_error


def test_a_failed_retriever_is_an_error_the_agent_can_read() -> None:
    answer = call({"query": "a"}, FailingRetriever(corpus()))
    assert answer.is_error
    assert "retriever at example:2 did not answer" in answer.content[0].text


def test_the_command_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no index directory there" in refused("mcp", "--index", "absent")
    monkeypatch.setattr("searchrl.cli.arguments.find_spec", lambda _: None)
    assert "pip install 'searchrl[mcp]'" in refused("mcp", "--index", "absent")
    assert "granian is not installed: pip install 'searchrl[serve]'" in refused(
        "serve", "--index", "absent"
    )
