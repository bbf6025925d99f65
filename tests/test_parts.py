"""Parts of a long computation: run once, in order, gone on with or begun anew."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from scripts.parts import Part, pin, run, run_all
from searchrl.errors import InputError


@pytest.fixture(name="called")
def _called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command[2:]))
    return called


def test_a_finished_part_is_left_alone_and_a_begun_one_goes_on_or_begins_anew(
    tmp_path: Path, called: list[list[str]]
) -> None:
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


def test_what_a_part_needs_is_run_before_it_and_once(
    tmp_path: Path, called: list[list[str]]
) -> None:
    model = Part(tmp_path / "model", ("teach",), "done")
    sampled = Part(tmp_path / "sampled", ("sample",), "done", after=(model,))
    first = Part(tmp_path / "first", ("train",), "done", after=(model,))
    second = Part(tmp_path / "second", ("tune",), "done", after=(sampled, model))
    run_all([second, first], jobs=1)
    assert called[0] == ["teach"]
    assert sorted(called[1:3]) == [["sample"], ["train"]]
    assert called[3:] == [["tune"]]


def test_parts_of_another_plan_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    pin(tmp_path, {"steps": 14})
    pin(tmp_path, {"steps": 14})
    with pytest.raises(InputError, match=r"plan\.json: was begun with other options"):
        pin(tmp_path, {"steps": 1})
    assert json.loads((tmp_path / "plan.json").read_text()) == {"steps": 14}
