"""The registry of methods: each name opens an agent of that name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest

from searchrl.agents.ircot import IrcotAgent
from searchrl.agents.search_r1 import SearchR1Agent
from searchrl.errors import InputError
from searchrl.evaluation.options import MethodName
from searchrl.experiment import Experiment
from searchrl.methods import METHODS, Trained, entrants, find_trained, open_method
from searchrl.models.local import LocalModel
from searchrl.recipe import Recipe
from tests.training_fixtures import save_model, search_r1_recipe, small_recipe


@pytest.fixture(scope="module")
def experiment(random_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    model = save_model(random_model, tmp_path_factory.mktemp("model"))
    return Experiment(small_recipe(model), tmp_path_factory.mktemp("run"))


def test_every_name_that_a_recipe_may_say_is_there() -> None:
    assert set(METHODS) == set(get_args(MethodName))


@pytest.mark.parametrize("name", get_args(MethodName))
def test_a_method_is_opened_under_its_name(experiment: Experiment, name: MethodName) -> None:
    assert open_method(name, experiment, experiment.test).name == name


def test_untrained_methods_share_one_model(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str | None] = []
    fresh = Experiment(experiment.recipe, experiment.directory)
    monkeypatch.setattr(fresh, "searcher", loaded.append)
    for name in ("s3", "search_r1", "search_r1_ret", "deep_retrieval", "sft"):
        open_method(name, fresh, experiment.test)
    assert loaded == [None]


def test_the_recipes_own_agent_gets_its_options_and_the_trained_searcher(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["s3_no_both", "search_r1", "search_r1_ret", "sft"]
    recipe = search_r1_recipe(Path("/absent"), f"evaluation.methods={json.dumps(names)}")
    own = Experiment(recipe, experiment.directory)
    monkeypatch.setattr("searchrl.methods.weights_identity", str)
    monkeypatch.setattr("searchrl.methods.model_identity", lambda options: options.model)
    loaded: list[str | None] = []
    monkeypatch.setattr(own, "prompted", loaded.append)
    prepared = {e.name: e for e in entrants(own, Trained("trained"))}
    for name in names:
        prepared[name].open(experiment.test)
    # Another method's weights are not this one's.
    assert loaded == [None, "trained", "trained", "trained"]
    agent = prepared["search_r1"].open(experiment.test)
    assert isinstance(agent, SearchR1Agent)
    assert agent._options == recipe.agent
    ablated = prepared["s3_no_both"].settings["options"]
    assert (ablated["hand_over_initial"], ablated["selection"]) == (False, "all")
    assert prepared["search_r1"].settings["options"]["max_turns"] == recipe.agent.max_turns
    assert prepared["search_r1"].settings["searcher"] == "trained"


def run_directory(path: Path, model: Path, recipe: Recipe) -> Path:
    """What a finished run looks like from outside."""
    shutil.copytree(model, path / "checkpoints" / "final")
    (path / "config.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    return path


def test_methods_use_searchers_of_their_own_with_what_their_runs_were_trained_with(
    experiment: Experiment, random_model: LocalModel, tmp_path: Path
) -> None:
    model = save_model(random_model, tmp_path / "model")
    trained = search_r1_recipe(model, "agent.k=7", "agent.style=brief")
    run = run_directory(tmp_path / "run", model, trained)
    final = run / "checkpoints" / "final"
    for path in (run, final):
        assert find_trained(path) == Trained(str(final), trained.agent)
    assert find_trained(model) == Trained(str(model))

    searchers = {"search_r1:a": str(run), "r1": str(final), "search_r1:b": str(model)}
    searchers |= {"ircot": str(model), "cot": str(model), "s3:x": str(run)}
    entries = ["rag", "search_r1", *searchers]
    values = experiment.recipe.model_dump(mode="json")
    values["evaluation"] |= {"methods": entries, "searchers": searchers}
    opened = Experiment(Recipe.model_validate(values), experiment.directory)
    prepared = {e.name: e for e in entrants(opened)}
    assert list(prepared) == entries
    options = {name: e.settings["options"] for name, e in prepared.items()}
    assert (options["search_r1:a"]["k"], options["r1"]["k"]) == (7, 7)
    assert (options["search_r1:a"]["search"], options["r1"]["search"]) == (True, False)
    # No run explains the lone checkpoint, and the recipe's own agent goes before any run's.
    assert options["search_r1:b"] == options["search_r1"]
    assert options["s3:x"] == values["agent"]
    assert options["ircot"] == values["ircot"]
    models = {name: e.settings["searcher"] for name, e in prepared.items()}
    assert models["rag"] is None
    assert len({models[name] for name in searchers}) == 1
    agent = prepared["ircot"].open(experiment.test)
    assert isinstance(agent, IrcotAgent)
    assert agent._model is opened.prompted(str(model))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("evaluation.searchers.s3=runs/a",), "searchers.s3: not one of evaluation.methods"),
        (("evaluation.searchers.rag=runs/a",), "searchers.rag: this method has no model"),
        (('evaluation.methods=["s3:"]',), "a label is made of letters"),
        (('evaluation.methods=["s3:a b"]',), "a label is made of letters"),
    ],
)
def test_a_searcher_goes_to_a_method_that_is_compared_and_has_one(
    changes: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        small_recipe(Path("/absent"), 'evaluation.methods=["rag"]', *changes)
