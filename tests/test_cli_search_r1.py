"""A run of Search-R1 through the commands: trained, asked, compared, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from searchrl.models.local import LocalModel
from tests.command_line import good, refused
from tests.training_fixtures import save_model, search_r1_recipe

pytestmark = pytest.mark.pipeline

ONE_THREAD = ("--threads", "1")


@pytest.fixture(scope="module")
def recipe(random_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search-r1")
    model = save_model(random_model, folder / "model")
    made = search_r1_recipe(model, "run.steps=1", "evaluation.questions=2")
    (folder / "recipe.json").write_text(json.dumps(made.model_dump(mode="json")))
    return folder / "recipe.json"


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    good("train", recipe, "--out", out, *ONE_THREAD)
    return out


def test_training_asks_nothing_of_the_generator(run: Path) -> None:
    [row] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert row["reward/answered"] == 0
    assert not (run / "rag_cache.jsonl").exists()


def test_ask_shows_the_models_own_answer(run: Path) -> None:
    episode: dict[str, Any] = good("ask", "Who?", "--run", run, "--json", *ONE_THREAD).json
    assert episode["method"] == "search_r1"
    assert (episode["answer"], episode["answers_itself"]) == (None, True)
    assert {"action", "answer", "well_formed"} <= episode["turns"][0].keys()
    shown = good("ask", "Who?", "--run", run, *ONE_THREAD).stdout
    assert "read  0 passages" in shown
    assert "no answer  (search ended: max turns)" in shown
    assert "generator" not in shown


def test_ask_takes_a_recipe_and_any_searcher(recipe: Path, run: Path, tmp_path: Path) -> None:
    index, final = run / "data" / "test" / "index", run / "checkpoints" / "final"
    good("ask", "Who?", "--run", run, *ONE_THREAD)
    named = ("ask", "Who?", "--recipe", recipe, "--searcher")
    chosen = (*named, final, "--index", index, "--json", *ONE_THREAD)
    own = good("ask", "Who?", "--run", run, "--json", *ONE_THREAD).json
    assert good(*chosen).json["segments"] == own["segments"]
    shorter = good(*chosen, "--set", "agent.max_turns=0").json
    assert len(shorter["turns"]) == 1 < len(own["turns"])
    assert "name one: --index" in refused(*named, final)
    assert "no trained searcher there" in refused(*named, tmp_path, "--index", index)
    for part in ((), ("--recipe", recipe), ("--run", run, "--recipe", recipe)):
        assert "name a run with --run, or a recipe" in refused("ask", "Who?", *part)


def test_it_is_compared_on_its_own_answer_and_on_the_generators(recipe: Path, run: Path) -> None:
    names = "rag,search_r1,search_r1_ret"
    arguments = ("evaluate", recipe, "--methods", names, "--searcher", run, "--out", run, "--json")
    methods = good(*arguments, *ONE_THREAD).json["methods"]
    assert list(methods) == names.split(",")
    rows = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    answers = {(row["method"], type(row["answer"])) for row in rows}
    assert answers == {("rag", str), ("search_r1", type(None)), ("search_r1_ret", str)}
    good("report", run)
    page = (run / "report.html").read_text()
    assert "Passages found in all" in page
    assert "Context handed to the generator" not in page


def test_searchers_are_given_to_methods_by_name(recipe: Path, run: Path, tmp_path: Path) -> None:
    final = run / "checkpoints" / "final"
    arguments = ["evaluate", recipe, "--methods", "search-r1:a,search-r1:b,r1,s3", "--n", "2"]
    given = ["--searcher", f"search-r1:a={run}", "--searcher", f"r1={final}", "--out", tmp_path]
    good(*arguments, *given, *ONE_THREAD)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["methods"]) == ["search_r1:a", "search_r1:b", "r1", "s3"]
    searchers = results["settings"]["recipe"]["evaluation"]["searchers"]
    assert searchers == {"search_r1:a": str(run), "r1": str(final)}
    twice = ("--searcher", f"r1={run}", "--searcher", f"r1={final}")
    assert "r1 has one already" in refused(*arguments, *twice, "--out", tmp_path)
    twice = ("--searcher", run, "--searcher", final)
    assert "name the method, as in --searcher s3=" in refused(*arguments, *twice, "--out", tmp_path)
    nothing = ("--searcher", f"s3={tmp_path}", "--out", tmp_path)
    assert f"{tmp_path}: no trained searcher there" in refused(*arguments, *nothing)


def test_the_demo_takes_it(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    small = ("--set", "reward.kind=f1", "--seed", "3")
    good("demo", "--recipe", recipe, "--out", out, *small, *ONE_THREAD)
    methods = json.loads((out / "summary.json").read_text())["methods"]
    assert list(methods) == ["direct", "rag", "search_r1-untrained", "search_r1", "oracle"]
