"""The plan behind the table of all methods: every row has its parts, every command its recipe."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from scripts import method_table
from scripts.method_table import ROWS, Part, evaluation, pin, plan, run
from searchrl.evaluation.options import method_of
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe


def options(out: Path, *more: str) -> argparse.Namespace:
    return method_table._parser().parse_args(["--out", str(out), *more])


def recipe_of(command: Sequence[str]) -> Recipe:
    sets = [after for word, after in pairwise(command) if word == "--set"]
    return load_recipe(command[2], sets)


def test_every_part_is_a_command_over_a_recipe_that_exists(tmp_path: Path) -> None:
    parts, searchers = plan(options(tmp_path, "--seed", "3", "--set", "rollout.group_size=2"))
    assert len({part.out for part in parts}) == len(parts)
    for part in parts:
        assert all(other in parts and other.wave < part.wave for other in part.after)
        if part.command[0] == "searchrl":
            recipe = recipe_of(part.command)
            worlds = recipe.data.train, recipe.data.test
            assert [w.seed for w in worlds if w.kind == "synthwiki"] == [6, 7]
            assert recipe.rollout.group_size == 2
            if recipe.agent.kind != "s3":
                assert recipe.searcher.model.startswith(str(tmp_path / "taught"))
                assert recipe.searcher.model in {str(other.out) for other in parts}
    assert {*searchers.values()} <= {part.out for part in parts}


def test_the_table_has_every_method_and_its_own_searcher(tmp_path: Path) -> None:
    chosen = options(tmp_path)
    parts, searchers = plan(chosen)
    command = evaluation(chosen, searchers)
    assert command[command.index("--methods") + 1] == ",".join(ROWS)
    assert {name for name in ROWS if ":" in name or method_of(name) not in
            {"direct", "cot", "rag", "oracle"}} == searchers.keys()  # fmt: skip
    recipe = recipe_of(command)
    assert (recipe.ircot.max_retrievals, recipe.search_o1.max_searches) == (3, 3)
    kinds = {
        name: recipe_of(part.command).agent
        for part in parts
        for name, path in searchers.items()
        if path == part.out and part.command[1] == "train"
    }
    assert kinds["r1"].kind == "search_r1"
    assert not kinds["r1"].search
    assert kinds["deep_retrieval"].kind == "deep_retrieval"


def test_a_finished_part_is_left_alone_and_a_begun_one_goes_on_or_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command[2:]))
    training = Part(tmp_path / "a", ("searchrl", "train"), "final", resumes=True)
    tuning = Part(tmp_path / "b", ("searchrl", "sft"), "final")
    for part in (training, tuning):
        run(part)
        part.out.mkdir()
        (part.out / "config.json").touch()
        run(part)
    assert called == [
        ["searchrl", "train"],
        ["searchrl", "train", "--resume"],
        ["searchrl", "sft"],
        ["searchrl", "sft"],
    ]
    assert not tuning.out.exists()
    (training.out / "final").touch()
    run(training)
    assert len(called) == 4


def test_parts_of_another_plan_are_not_taken_for_this_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = method_table._parser()
    pin(options(tmp_path), parser)
    pin(options(tmp_path, "--jobs", "2", "--n", "900"), parser)
    with pytest.raises(SystemExit):
        pin(options(tmp_path, "--steps", "1"), parser)
    assert "plan.json: was begun with other options" in capsys.readouterr().err
    assert json.loads((tmp_path / "plan.json").read_text())["steps"] == 14
