"""The search tool, a process of its own beside a rollout or shared by all of them.

A search that fails is noted in the rollout's state, where it ends the scoring with an error: what a
model answers without its passages is not the model's to be rewarded for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import verifiers.v1 as vf

from searchrl.agents.protocol import render_hits
from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval.index import open_index
from searchrl.serving.client import HttpRetriever
from searchrl_verifiers.state import SearchState

if TYPE_CHECKING:
    from searchrl.retrieval.protocol import Retriever


class SearchToolsetConfig(vf.ToolsetConfig):
    """Where passages come from; one of ``index`` and ``retriever`` has to be set."""

    index: Path | None = None
    """An index directory of searchrl."""
    retriever: str | None = None
    """A server of ``/retrieve``: searchrl's own, or Search-R1's."""
    key_variable: str | None = None
    """Environment variable with the server's API key."""
    seconds: float = 60.0
    """How long a search may take."""
    outage: float = 600.0
    """How long a search waits for a server that has gone down."""
    k: int = 3
    """Passages a search."""


class SearchToolset(vf.Toolset[SearchToolsetConfig, SearchState]):
    """One tool, ``search``."""

    TOOL_PREFIX = None

    async def setup(self) -> None:
        """Open the index, or prepare the client."""
        self._retriever = open_retriever(self.config)

    @vf.tool
    async def search(self, query: str) -> str:
        """Search a corpus; returns the passages that fit best, best first."""
        try:
            [hits] = await self._retriever.search([query], self.config.k)
        except InfrastructureError as error:
            self.state.failure = str(error)
            return "The search failed."
        self.state.searches += 1
        return render_hits(hits)


def open_retriever(config: SearchToolsetConfig) -> Retriever:
    """What a configuration names.

    Raises:
        InputError: it names none, or two, or there is no index there.
    """
    if (config.index is None) == (config.retriever is None):
        raise InputError("search: set one of index and retriever")
    if config.index is not None:
        return open_index(config.index)
    assert config.retriever is not None
    key = os.environ[config.key_variable] if config.key_variable else None
    return HttpRetriever(config.retriever, key, config.seconds, config.outage)


if __name__ == "__main__":
    # verifiers starts a tool server by its module.
    SearchToolset.run()
