"""The methods whose model is trained: what ``[agent]`` may say in a recipe, and its agent."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from searchrl.agents.agent import Agent
from searchrl.agents.deep_retrieval import DeepRetrievalAgent, DeepRetrievalOptions
from searchrl.agents.s3 import S3Agent, S3Options
from searchrl.agents.search_r1 import SearchR1Agent, SearchR1Options
from searchrl.models.protocol import LanguageModel
from searchrl.retrieval.protocol import Retriever


def _kind(value: Any) -> Any:
    """The kind of an ``[agent]`` section; s3 where it does not say."""
    return value.get("kind", "s3") if isinstance(value, dict) else getattr(value, "kind", None)


AgentOptions = Annotated[
    Annotated[S3Options, Tag("s3")]
    | Annotated[SearchR1Options, Tag("search_r1")]
    | Annotated[DeepRetrievalOptions, Tag("deep_retrieval")],
    Discriminator(_kind),
]


def open_agent(
    options: AgentOptions, searcher: LanguageModel, retriever: Retriever, name: str | None = None
) -> Agent:
    """The agent of some options, called by its kind unless it is given a name."""
    name = name or options.kind
    match options:
        case S3Options():
            return S3Agent(searcher, retriever, options, name)
        case SearchR1Options():
            return SearchR1Agent(searcher, retriever, options, name)
        case DeepRetrievalOptions():
            return DeepRetrievalAgent(searcher, retriever, options, name)
