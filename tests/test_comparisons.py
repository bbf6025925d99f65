"""The plans of the comparisons: every row has its parts, every command its recipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from scripts import method_curves, method_table, search_r1_ablations
from scripts.parts import Part
from scripts.study import LESSONS, Study
from searchrl.evaluation.options import method_of
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe

SMALL = "rollout.questions_per_step=8"


def recipe_of(command: Sequence[str]) -> Recipe:
    sets = [after for word, after in pairwise(command) if word == "--set"]
    return load_recipe(command[2], sets)


def after(command: Sequence[str], option: str) -> str:
    return command[command.index(option) + 1]


def needed(parts: Iterable[Part]) -> set[Part]:
    return {part for one in parts for part in (one, *needed(one.after))}


def check(study: Study, part: Part) -> None:
    """A lesson, or a command over this seed's worlds, the plan's length and its own searcher."""
    if part.command[0] != "searchrl":
        assert after(part.command, "--format") in LESSONS
        return
    recipe = recipe_of(part.command)
    worlds = recipe.data.train, recipe.data.test
    assert [w.seed for w in worlds if w.kind == "synthwiki"] == [2 * study.seed, 2 * study.seed + 1]
    assert recipe.seed == study.seed
    assert all(other.wave < part.wave for other in part.after)
    if part.command[1] == "train":
        assert recipe.run.steps == study.steps
    if recipe.agent.kind != "s3":
        assert recipe.searcher.model in {str(other.out) for other in part.after}
    if recipe.agent.kind == "search_r1":
        assert recipe.agent.max_turns == 3
        shown = (
            recipe.searcher.model.rpartition("-top")[2] if "-top" in recipe.searcher.model else "3"
        )
        assert not recipe.agent.search or recipe.agent.k == int(shown)
        assert recipe.learning.kl_coefficient > 0


def test_the_table_has_every_method_and_its_own_searcher(tmp_path: Path) -> None:
    study = Study(tmp_path, 3, 5, (SMALL,))
    rows = method_table.plan(study, sampled=7)
    parts = needed(part for part in rows.values() if part is not None)
    assert len({part.out for part in parts}) == len(parts)
    for part in parts:
        check(study, part)
    plain = {name for name, part in rows.items() if part is None}
    assert plain == {"direct", "cot", "rag", "oracle"}
    command = method_table.evaluation(study, rows, 500)
    assert after(command, "--methods") == ",".join(rows)
    recipe = recipe_of(command)
    assert recipe.rollout.questions_per_step == 8
    assert (recipe.ircot.max_retrievals, recipe.search_o1.max_searches) == (3, 3)
    kinds = {
        name: recipe_of(part.command).agent
        for name, part in rows.items()
        if part is not None and part.command[1] == "train"
    }
    assert {name: kind.kind for name, kind in kinds.items()} == {
        "deep_retrieval": "deep_retrieval",
        "r1": "search_r1",
        **{f"{m}:{a}": m for m in ("search_r1", "s3") for a in ("ppo", "grpo")},
    }
    assert kinds["r1"].kind == "search_r1"
    assert not kinds["r1"].search
    [sampled] = [part for part in parts if part.command[1] == "sample"]
    rejection = rows["search_r1:rejection"]
    assert rejection is not None
    assert sampled in rejection.after
    examples = recipe_of(rejection.command).supervised.examples
    assert examples == sampled.out / "examples"


@pytest.mark.parametrize("method", method_curves.METHODS)
def test_a_curve_goes_from_the_untrained_searcher_to_the_last_checkpoint(
    method: str, tmp_path: Path
) -> None:
    study = Study(tmp_path, 1, 14)
    run = method_curves.run_of(study, method, "ppo")
    check(study, run)
    points = method_curves.points(study, method, "ppo")
    assert [*points] == [0, 2, 6, 10, 14]
    trained = recipe_of(run.command).run
    kept = [*range(trained.save_every, trained.steps + 1, trained.save_every)]
    assert {*points} - {0} <= set(kept[-trained.keep_checkpoints :])
    command = method_curves.evaluation(study, method, "ppo", 9)
    assert {method_of(entry) for entry in after(command, "--methods").split(",")} == {method}
    recipe, of_run = recipe_of(command), recipe_of(run.command)
    assert recipe.searcher.model == of_run.searcher.model
    assert recipe.agent == of_run.agent


def test_a_curve_is_read_from_what_was_evaluated(tmp_path: Path) -> None:
    study = Study(tmp_path, 0, 4, (SMALL,))
    rows = {f"s3:step{s}": {"accuracy": s / 10, "ci95": [0.0, 1.0]} for s in (0, 2, 4)}
    folder = Path(after(method_curves.evaluation(study, "s3", "ppo", 9), "--out"))
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"methods": rows}))
    curve = method_curves.curve(study, "s3", "ppo")
    assert [(at, row["accuracy"]) for at, row in curve] == [(0, 0.0), (128, 0.2), (256, 0.4)]
    assert method_curves.table({"s3, seed 0": curve}).splitlines()[2] == (
        "| s3, seed 0 | 0.0 (0.0 to 100.0) | 20.0 (0.0 to 100.0) | 40.0 (0.0 to 100.0) |"
    )


def test_every_ablation_changes_what_it_is_about_and_nothing_else(tmp_path: Path) -> None:
    study = Study(tmp_path, 0, 14)
    tables = search_r1_ablations.plan(study)
    recipes: dict[str, list[Recipe]] = {}
    for title, settings in tables.items():
        for setting in settings:
            check(study, setting.run)
        recipes[title] = [recipe_of(setting.run.command) for setting in settings]
    masks, passages, groups = recipes.values()
    assert [(r.learning.algorithm, r.learning.mask_retrieved) for r in masks] == [
        ("ppo", True),
        ("ppo", False),
        ("grpo", True),
        ("grpo", False),
    ]
    assert [r.agent.k for r in passages if r.agent.kind == "search_r1"] == [1, 3, 5]
    assert [r.rollout.group_size for r in groups] == [1, 3, 5]
    assert {r.rollout.group_size * r.rollout.questions_per_step for r in groups} == {120}
    command = search_r1_ablations.evaluation(study, tables, 9)
    named = {search_r1_ablations.entry(s) for rows in tables.values() for s in rows}
    assert {*after(command, "--methods").split(",")} == {"rag", *named}


def test_an_ablations_table_puts_the_paper_beside_it(tmp_path: Path) -> None:
    rows = search_r1_ablations.plan(Study(tmp_path, 0, 14))["Retrieved tokens"]
    seen = {"accuracy": 0.25, "ci95": [0.2, 0.3]}
    lines = search_r1_ablations.table(
        rows, {search_r1_ablations.entry(row): seen for row in rows}
    ).splitlines()
    assert lines[2] == "| PPO, masked | 25.0 (20.0 to 30.0) | 43.1 |"
    assert lines[5] == "| GRPO, not masked | 25.0 (20.0 to 30.0) |  |"
