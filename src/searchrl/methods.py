"""Every method by its name in ``evaluation.methods``, and how it is opened.

A method that answers itself is scored on its own answer; for the others, the frozen generator
answers from the context they hand over. A method may have a searcher of its own, a run or a
checkpoint. Without one, the trainable methods get the recipe's searcher as it comes, and those that
are only prompted (CoT, IRCoT, Search-o1) the generator's model: they need one that follows
instructions, which a searcher that is about to be trained need not.

Prompts and budgets of a trainable method are the recipe's where ``[agent]`` is of its kind, else
those that its searcher's run was trained with, else its defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
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
from searchrl.evaluation.options import MODELLESS, MethodName, method_of
from searchrl.experiment import Experiment, Split
from searchrl.models.protocol import LanguageModel
from searchrl.models.weights import model_identity, weights_identity
from searchrl.options import Options
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe
from searchrl.training.checkpoint import run_of, searcher_path


@dataclass(frozen=True, slots=True)
class Trained:
    """A searcher of its own for one method.

    Attributes:
        model: its directory.
        agent: how it was trained to be asked; ``None`` for a checkpoint that no run explains.
    """

    model: str
    agent: AgentOptions | None = None


def find_trained(path: Path) -> Trained:
    """The searcher of a run or a checkpoint, with the settings of its run where there is one.

    Raises:
        InputError: there is no trained searcher at ``path``.
    """
    model, run = searcher_path(path), run_of(path)
    return Trained(str(model), load_recipe(str(run / "config.json")).agent if run else None)


def entrants(experiment: Experiment, searcher: Trained | None = None) -> list[Entrant]:
    """The methods of the recipe's evaluation, ready to be compared.

    Args:
        experiment: the opened recipe.
        searcher: for the recipe's own agent, its variants and ``sft``, where they have none of
            their own.

    Raises:
        InputError: a path in ``evaluation.searchers`` holds no trained searcher.
    """
    recipe = experiment.recipe
    own = {entry: find_trained(Path(p)) for entry, p in recipe.evaluation.searchers.items()}
    own_kind = recipe.agent.kind

    def inherits(method: MethodName) -> bool:
        return method == "sft" or method.startswith(own_kind)

    return [
        entrant(
            entry,
            method_of(entry),
            experiment,
            own.get(entry, searcher if inherits(method_of(entry)) else None),
        )
        for entry in recipe.evaluation.methods
    ]


def entrant(
    name: str, method: MethodName, experiment: Experiment, trained: Trained | None = None
) -> Entrant:
    """A method under a name of its own."""
    chosen = METHODS[method].choose(experiment.recipe, trained)
    settings = {
        "method": method,
        "options": None if chosen is None else chosen.model_dump(mode="json"),
        "searcher": _identity(method, experiment.recipe, trained),
    }
    return Entrant(name, lambda split: open_method(method, experiment, split, trained), settings)


def open_method(
    name: MethodName, experiment: Experiment, split: Split, trained: Trained | None = None
) -> Agent:
    """Open a method.

    Args:
        name: of the method.
        experiment: the opened recipe.
        split: whose corpus is searched.
        trained: its own searcher; see the module for what it gets without.
    """
    method = METHODS[name]
    return method.open(experiment, split, trained, method.choose(experiment.recipe, trained))


Chooser = Callable[[Recipe, Trained | None], Options | None]
Opener = Callable[[Experiment, Split, Trained | None, Any], Agent]


@dataclass(frozen=True, slots=True)
class Method:
    """One method: which options it runs with, and how it is opened with them.

    Attributes:
        choose: the options, from a recipe and a searcher of its own.
        open: the agent, over a split and with what ``choose`` gave.
        prompted: it gets the generator's model where it has none of its own.
    """

    choose: Chooser
    open: Opener
    prompted: bool = False


def _identity(method: MethodName, recipe: Recipe, trained: Trained | None) -> str | None:
    if method in MODELLESS:
        return None
    if trained is not None:
        return weights_identity(trained.model)
    return model_identity(recipe.generator if METHODS[method].prompted else recipe.searcher)


def _searcher(experiment: Experiment, trained: Trained | None) -> LanguageModel:
    return experiment.prompted(None if trained is None else trained.model)


def _instructed(experiment: Experiment, trained: Trained | None) -> LanguageModel:
    return experiment.reader if trained is None else experiment.prompted(trained.model)


def _agent(default: AgentOptions, name: str | None = None, **changes: Any) -> Method:
    """A trainable method; ``changes`` are options that set it apart from others of its kind."""

    def choose(recipe: Recipe, trained: Trained | None) -> AgentOptions:
        known = (recipe.agent, None if trained is None else trained.agent)
        options = next((o for o in known if o is not None and o.kind == default.kind), default)
        return options.model_copy(update=changes)

    return Method(
        choose,
        lambda experiment, split, trained, options: open_agent(
            options, _searcher(experiment, trained), split.retriever, name
        ),
    )


def _retrieval_only(method: Method) -> Method:
    return Method(
        method.choose,
        lambda *arguments: RetrievalOnlyAgent(method.open(*arguments)),
        method.prompted,
    )


def _ircot(name: str, published: IrcotOptions | None = None) -> Method:
    return Method(
        lambda recipe, trained: published or recipe.ircot,
        lambda experiment, split, trained, options: IrcotAgent(
            _instructed(experiment, trained), split.retriever, options, name
        ),
        prompted=True,
    )


def _search_o1(name: str, published: SearchO1Options | None = None) -> Method:
    return Method(
        lambda recipe, trained: published or recipe.search_o1,
        lambda experiment, split, trained, options: SearchO1Agent(
            _instructed(experiment, trained), split.retriever, options, name
        ),
        prompted=True,
    )


def _without_options(opener: Callable[[Experiment, Split, Trained | None], Agent]) -> Method:
    return Method(
        lambda recipe, trained: None,
        lambda experiment, split, trained, _: opener(experiment, split, trained),
    )


def _cot(experiment: Experiment, split: Split, trained: Trained | None) -> Agent:
    options = experiment.recipe.generator
    model = _instructed(experiment, trained)
    return alone.cot(model, options.style, options.max_answer_tokens)


def _sft(experiment: Experiment, split: Split, trained: Trained | None) -> Agent:
    options = experiment.recipe.generator
    model = _searcher(experiment, trained)
    return alone.sft(model, options.style, options.max_answer_tokens)


_SEARCH_R1 = SearchR1Options(kind="search_r1")
METHODS: Mapping[MethodName, Method] = {
    "direct": _without_options(lambda experiment, split, trained: DirectAgent()),
    "cot": Method(lambda recipe, trained: None, lambda e, s, t, _: _cot(e, s, t), prompted=True),
    "sft": _without_options(_sft),
    "rag": _without_options(
        lambda experiment, split, _: RagAgent(split.retriever, experiment.recipe.reward.rag_k)
    ),
    "oracle": _without_options(lambda experiment, split, _: OracleAgent(split.passages())),
    "s3": _agent(S3Options()),
    "s3_no_initial": _agent(S3Options(), "s3_no_initial", hand_over_initial=False),
    "s3_no_selection": _agent(S3Options(), "s3_no_selection", selection="all"),
    "s3_no_both": _agent(S3Options(), "s3_no_both", hand_over_initial=False, selection="all"),
    "search_r1": _agent(_SEARCH_R1),
    "search_r1_ret": _retrieval_only(_agent(_SEARCH_R1)),
    "r1": _agent(_SEARCH_R1, "r1", search=False),
    "deep_retrieval": _agent(DeepRetrievalOptions(kind="deep_retrieval")),
    "ircot": _ircot("ircot"),
    "ircot_published": _ircot("ircot_published", ircot.PUBLISHED),
    "search_o1": _search_o1("search_o1"),
    "search_o1_ret": _retrieval_only(_search_o1("search_o1")),
    "search_o1_published": _search_o1("search_o1_published", search_o1.PUBLISHED),
}
