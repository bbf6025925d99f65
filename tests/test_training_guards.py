"""Guards: what each sees, what it lets pass, and that a run stops where one says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.errors import UnstableError
from searchrl.models.local import LocalModel
from searchrl.training.guards import Level, guard_metrics, judge
from searchrl.training.learner import Learner
from searchrl.training.options import GuardOptions
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.training_fixtures import ParityExperiment, save_model, small_recipe

FINE = {
    "skipped_updates": 0.0,
    "mismatch_kl": 1e-6,
    "entropy": 1.0,
    "reward/mean": 0.5,
    "groups/all_equal": 0.2,
    "episodes/truncated": 0.1,
    "episodes/invalid_turns": 0.1,
    "episodes/failed_share": 0.0,
}
GUARDS = {
    "gradients", "mismatch", "entropy", "reward",
    "all_equal_groups", "truncated_episodes", "invalid_turns", "failed_episodes",
}  # fmt: skip


def levels(rows: Sequence[dict[str, Any]], **options: Any) -> dict[str, Level]:
    verdicts = judge(rows, GuardOptions(**options))
    assert {verdict.guard for verdict in verdicts} == GUARDS
    for verdict in verdicts:
        assert (verdict.message == "") is (verdict.level is Level.FINE)
        assert "\n" not in verdict.message
    return {verdict.guard: verdict.level for verdict in verdicts if verdict.level}


def history(metric: str, values: Sequence[float | None]) -> list[dict[str, Any]]:
    return [FINE | {metric: value} for value in values]


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_a_healthy_run_is_let_alone(steps: int) -> None:
    assert levels([FINE] * steps) == {}
    assert guard_metrics(judge([FINE], GuardOptions())) == {f"guards/{g}": 0.0 for g in GUARDS}


def test_metrics_that_are_missing_or_not_finite_are_no_evidence() -> None:
    assert levels([{}] * 9) == {}
    for broken in (None, float("nan"), float("inf")):
        assert levels([dict.fromkeys(FINE, broken)] * 9) == {}


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("skipped_updates", [0, 1], {"gradients": Level.WARNING}),
        ("skipped_updates", [1, 1, 0], {}),
        ("skipped_updates", [1, 0, 1, 1], {"gradients": Level.WARNING}),
        ("skipped_updates", [1, 1, 1], {"gradients": Level.STOP}),
        ("skipped_updates", [0, 4], {"gradients": Level.STOP}),
        ("mismatch_kl", [1e-6, 0.02], {"mismatch": Level.WARNING}),
        ("mismatch_kl", [0.02, 1e-6], {}),
        ("mismatch_kl", [0.2, 0.2], {"mismatch": Level.WARNING}),
        ("mismatch_kl", [0.2, 0.05, 0.2], {"mismatch": Level.WARNING}),
        ("mismatch_kl", [0.2, 0.2, 0.2], {"mismatch": Level.STOP}),
        ("entropy", [1, 1, 1, 0.05, 0.05, 0.05], {"entropy": Level.WARNING}),
        ("entropy", [1, 1, 1, 0.2, 0.2, 0.2], {}),
        ("entropy", [1, 1, 0.01, 0.01, 0.01], {}),
        ("entropy", [0] * 9, {}),
        ("reward/mean", [0] * 5 + [1] * 5 + [0.1] * 5, {"reward": Level.WARNING}),
        ("reward/mean", [0] * 5 + [1] * 5 + [0.6] * 5, {}),
        ("reward/mean", [0.5] * 5 + [0.45] * 5, {}),
        ("reward/mean", [0.5] * 5 + [0.3] * 5, {"reward": Level.WARNING}),
        ("reward/mean", [-1, -1, 1, 1], {}),
        ("groups/all_equal", [0.95] * 3, {"all_equal_groups": Level.WARNING}),
        ("groups/all_equal", [0.95, 0.95], {}),
        ("groups/all_equal", [0.95, 0.8, 0.95], {}),
        ("episodes/truncated", [0.6] * 3, {"truncated_episodes": Level.WARNING}),
        ("episodes/invalid_turns", [0.6] * 3, {"invalid_turns": Level.WARNING}),
        ("episodes/failed_share", [0.1] * 3, {"failed_episodes": Level.WARNING}),
    ],
)
def test_what_each_guard_says(metric: str, values: list[float], expected: dict[str, Level]) -> None:
    assert levels(history(metric, values)) == expected


def test_thresholds_are_the_options() -> None:
    rows = history("mismatch_kl", [0.2] * 3)
    assert levels(rows, mismatch_stop=0.3) == {"mismatch": Level.WARNING}
    assert levels(rows, mismatch_stop=0.3, mismatch_warning=0.25) == {}
    assert levels(rows, patience=4) == {"mismatch": Level.WARNING}


@settings(max_examples=20)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(sorted(FINE)), st.none() | st.floats(), max_size=8),
        min_size=1,
        max_size=12,
    )
)
def test_no_history_breaks_a_guard(rows: list[dict[str, Any]]) -> None:
    levels(rows)


@pytest.fixture(scope="module")
def model(random_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(random_model, tmp_path_factory.mktemp("model"))


def spoil(learner: Learner) -> None:
    """From now on every gradient of this learner is infinite."""
    learner.searcher.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.pipeline
def test_a_run_whose_gradients_are_not_finite_stops_after_three_and_keeps_its_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin = Learner.__init__

    def begin_spoiled(self: Learner, *arguments: Any) -> None:
        begin(self, *arguments)
        spoil(self)

    monkeypatch.setattr(Learner, "__init__", begin_spoiled)
    recipe = small_recipe(model, "learning.algorithm=reinforce_plus_plus", "run.save_every=9")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UnstableError, match="step 3: 3 updates in a row were skipped") as caught,
    ):
        train(ParityExperiment(recipe, tmp_path), RunDirectory(tmp_path))
    assert caught.value.exit_code == 3
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["guards/gradients"] for row in rows] == [1, 1, 2]
    assert [row["grad_norm"] for row in rows] == [None] * 3
    # Said when it begins, not at every step.
    assert [record.message.split(":")[0] for record in caplog.records] == ["step 1"]
    assert (tmp_path / "STATUS").read_text() == "error\n"
    assert not (tmp_path / "checkpoints").exists()
