"""The registry of methods: each name opens an agent of that name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from searchrl.agents.search_r1 import SearchR1Agent
from searchrl.experiment import Experiment
from searchrl.methods import METHODS, open_method
from searchrl.models.local import LocalModel
from searchrl.recipe import MethodName
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
    recipe = search_r1_recipe(Path("/absent"))
    own = Experiment(recipe, experiment.directory)
    loaded: list[str | None] = []
    monkeypatch.setattr(own, "searcher", loaded.append)
    agent = open_method("search_r1", own, experiment.test, "trained")
    assert isinstance(agent, SearchR1Agent)
    assert agent._options == recipe.agent
    open_method("search_r1_ret", own, experiment.test, "trained")
    assert loaded == ["trained"]
    # Another method's weights are not this one's.
    open_method("s3", own, experiment.test, "trained")
    assert loaded == ["trained", None]
