"""Every method by its name in ``evaluation.methods``, and how it is opened.

A method that answers itself is scored on its own answer; for the others, the frozen generator
answers from the context they hand over. The recipe's own agent gets the trained searcher where
there is one; another trainable one gets the searcher as it comes. Methods that are only prompted
(CoT, IRCoT, Search-o1) get the generator's model: they need one that follows instructions, which a
searcher that is about to be trained need not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from searchrl.agents import alone, ircot, search_o1
from searchrl.agents.agent import Agent
from searchrl.agents.context import DirectAgent, OracleAgent, RagAgent, RetrievalOnlyAgent
from searchrl.agents.deep_retrieval import DeepRetrievalOptions
from searchrl.agents.ircot import IrcotAgent, IrcotOptions
from searchrl.agents.s3 import S3Options
from searchrl.agents.search_o1 import SearchO1Agent, SearchO1Options
from searchrl.agents.search_r1 import SearchR1Options
from searchrl.agents.trained import AgentOptions, open_agent
from searchrl.evaluation.comparison import Entrant
from searchrl.experiment import Experiment, Split
from searchrl.models.weights import model_identity, weights_identity
from searchrl.recipe import MethodName

Opener = Callable[[Experiment, Split, str | None], Agent]
"""Opens a method for an experiment, over a split, with a trained searcher where there is one."""


def open_method(
    name: MethodName, experiment: Experiment, split: Split, searcher: str | None = None
) -> Agent:
    """Open a method.

    Args:
        name: of the method.
        experiment: the opened recipe.
        split: whose corpus is searched.
        searcher: the trained searcher; the recipe's untrained one when left out.
    """
    return METHODS[name](experiment, split, searcher)


def entrants(experiment: Experiment, searcher: str | None = None) -> list[Entrant]:
    """The methods of the recipe's evaluation, ready to be compared."""
    return [
        Entrant(
            name,
            lambda split, name=name: open_method(name, experiment, split, searcher),  # type: ignore[misc]
            method_settings(experiment, searcher),
        )
        for name in experiment.recipe.evaluation.methods
    ]


def method_settings(experiment: Experiment, searcher: str | None) -> dict[str, Any]:
    """What the scores of a method depend on besides what all methods share."""
    recipe = experiment.recipe
    sections = recipe.model_dump(mode="json", include={"agent", "ircot", "search_o1"})
    identity = model_identity(recipe.searcher) if searcher is None else weights_identity(searcher)
    return {**sections, "searcher": identity}


def _agent(default: AgentOptions) -> Opener:
    """The recipe's agent where it is of this kind; else this kind, prompted, with its defaults."""

    def opener(experiment: Experiment, split: Split, searcher: str | None) -> Agent:
        options = experiment.recipe.agent
        if options.kind == default.kind:
            return open_agent(options, experiment.prompted(searcher), split.retriever)
        return open_agent(default, experiment.prompted(), split.retriever)

    return opener


def _retrieval_only(opener: Opener) -> Opener:
    return lambda experiment, split, searcher: RetrievalOnlyAgent(
        opener(experiment, split, searcher)
    )


def _ircot(name: str, published: IrcotOptions | None = None) -> Opener:
    return lambda experiment, split, _: IrcotAgent(
        experiment.reader, split.retriever, published or experiment.recipe.ircot, name
    )


def _search_o1(name: str, published: SearchO1Options | None = None) -> Opener:
    return lambda experiment, split, _: SearchO1Agent(
        experiment.reader, split.retriever, published or experiment.recipe.search_o1, name
    )


def _cot(experiment: Experiment, split: Split, searcher: str | None) -> Agent:
    options = experiment.recipe.generator
    return alone.cot(experiment.reader, options.style, options.max_answer_tokens)


def _sft(experiment: Experiment, split: Split, searcher: str | None) -> Agent:
    options = experiment.recipe.generator
    model = experiment.prompted(searcher)
    return alone.sft(model, options.style, options.max_answer_tokens)


_SEARCH_R1 = _agent(SearchR1Options(kind="search_r1"))
METHODS: Mapping[MethodName, Opener] = {
    "direct": lambda experiment, split, _: DirectAgent(),
    "cot": _cot,
    "sft": _sft,
    "rag": lambda experiment, split, _: RagAgent(split.retriever, experiment.recipe.reward.rag_k),
    "oracle": lambda experiment, split, _: OracleAgent(split.passages()),
    "s3": _agent(S3Options()),
    "search_r1": _SEARCH_R1,
    "search_r1_ret": _retrieval_only(_SEARCH_R1),
    "deep_retrieval": _agent(DeepRetrievalOptions(kind="deep_retrieval")),
    "ircot": _ircot("ircot"),
    "ircot_published": _ircot("ircot_published", ircot.PUBLISHED),
    "search_o1": _search_o1("search_o1"),
    "search_o1_ret": _retrieval_only(_search_o1("search_o1")),
    "search_o1_published": _search_o1("search_o1_published", search_o1.PUBLISHED),
}
