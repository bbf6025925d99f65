"""Signals while a run goes on: what is waited for, what is thrown away, what is saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from searchrl.models.local import LocalModel
from searchrl.training import run_directory, trainer
from searchrl.training.interruption import Interruption, uninterrupted
from searchrl.training.learner import Learner
from searchrl.training.model_card import model_card
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.command_line import good, searchrl, write_recipe
from tests.training_fixtures import Parity, ParityExperiment, save_model, small_recipe

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(scope="module")
def model(random_model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(random_model, tmp_path_factory.mktemp("model"))


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def watched(body: Callable[[Interruption], None]) -> Interruption:
    """Run what has to end in ``KeyboardInterrupt`` under watch."""
    interruption = Interruption()
    with interruption.watch(), pytest.raises(KeyboardInterrupt):
        body(interruption)
    return interruption


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_takes_effect_at_once_unless_it_is_held_back(number: int) -> None:
    reached: list[str] = []

    def free(interruption: Interruption) -> None:
        send(number)
        reached.append("after the signal")

    def held(interruption: Interruption) -> None:
        with interruption.hold():
            send(number)
            reached.append("still held")
        reached.append("after the block")

    for body in (free, held):
        assert not watched(body).insisted
    assert reached == ["still held"]


def test_a_second_signal_is_not_held_back() -> None:
    reached: list[int] = []

    def body(interruption: Interruption) -> None:
        with interruption.hold():
            for count in (1, 2):
                send()
                reached.append(count)

    assert watched(body).insisted
    assert reached == [1]


def test_handlers_are_put_back_and_other_threads_have_none() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruption().watch():
        assert all(signal.getsignal(n) not in before for n in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    seen: list[Any] = []

    def elsewhere() -> None:
        with Interruption().watch():
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == before


def test_a_signal_that_was_ignored_from_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption().watch():
            send()
        with uninterrupted():
            send()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_uninterrupted_ends_before_signals_count(number: int) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    reached: list[int] = []

    def twice() -> None:
        for count in (1, 2):
            send(number)
            reached.append(count)

    with pytest.raises(KeyboardInterrupt), uninterrupted():
        twice()
    assert reached == [1, 2]
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with uninterrupted():
        reached.append(3)
    assert reached == [1, 2, 3]


def test_a_second_signal_leaves_the_status_of_the_first(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during(run_directory, "write_text", monkeypatch, lambda n: send() if n == 2 else None)
    directory = RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt), directory.open(small_recipe(model), resume=False):
        raise KeyboardInterrupt
    assert (tmp_path / "STATUS").read_text() == "cancelled\n"


class InterruptedReward(Parity):
    """A signal comes while the episodes of the third step are being scored."""

    def __init__(self) -> None:
        self._scored = 0

    async def score(self, episode: Any) -> Any:
        self._scored += 1
        if self._scored == 2 * 8 + 3:
            send(signal.SIGTERM)
        return await super().score(episode)


class InterruptedExperiment(ParityExperiment):
    def reward(self) -> Any:
        return InterruptedReward()


def steps_saved(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("step_*"))


@pytest.mark.pipeline
def test_a_signal_in_a_rollout_saves_the_step_before_it(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = small_recipe(model, "run.save_every=4")
    with pytest.raises(KeyboardInterrupt):
        train(InterruptedExperiment(recipe, tmp_path), RunDirectory(tmp_path))
    assert (tmp_path / "STATUS").read_text() == "cancelled\n"
    assert steps_saved(tmp_path) == ["step_000002"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert "step 2 is saved; --resume goes on from it" in caplog.text
    seen: list[int] = []
    note = lambda step, _: seen.append(step)  # noqa: E731
    train(ParityExperiment(recipe, tmp_path), RunDirectory(tmp_path), True, note)
    assert seen == [3, 4]


def during(
    place: Any, name: str, monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]
) -> None:
    """Call ``before`` with the number of the call ahead of each call of a function."""
    function, calls = getattr(place, name), 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        before(calls)
        return function(*arguments)

    monkeypatch.setattr(place, name, call)


@pytest.mark.pipeline
def test_a_signal_in_an_update_waits_for_the_step(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during(Learner, "_optimizer_step", monkeypatch, lambda n: send() if n == 3 else None)
    recipe = small_recipe(model, "run.save_every=4")
    with pytest.raises(KeyboardInterrupt):
        train(ParityExperiment(recipe, tmp_path), RunDirectory(tmp_path))
    assert steps_saved(tmp_path) == ["step_000003"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.pipeline
def test_two_signals_in_an_update_leave_what_was_saved_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insist(number: int) -> None:
        if number == 3:
            send()
            send()

    during(Learner, "_optimizer_step", monkeypatch, insist)
    with pytest.raises(KeyboardInterrupt):
        train(ParityExperiment(small_recipe(model), tmp_path), RunDirectory(tmp_path))
    assert steps_saved(tmp_path) == ["step_000002"]
    assert (tmp_path / "STATUS").read_text() == "cancelled\n"


@pytest.mark.pipeline
def test_two_signals_in_a_save_leave_the_one_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insist(number: int) -> None:
        if number == 2:
            send()
            send()

    during(trainer, "save_checkpoint", monkeypatch, insist)
    recipe = small_recipe(model, "run.save_every=1")
    with pytest.raises(KeyboardInterrupt):
        train(ParityExperiment(recipe, tmp_path), RunDirectory(tmp_path))
    assert steps_saved(tmp_path) == ["step_000001"]
    assert [p.name for p in (tmp_path / "checkpoints").glob(".*")] == []


@pytest.mark.pipeline
def test_a_terminated_command_ends_with_130_and_goes_on_when_asked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = write_recipe(tmp_path / "recipe.toml", model), tmp_path / "run"
    arguments = ("train", recipe, "--out", out, "--threads", "1", "--set", "run.steps=3")
    asked = (*arguments, "--set", "run.save_every=3")
    with monkeypatch.context() as patch:
        during(Learner, "update", patch, lambda n: send(signal.SIGTERM) if n == 2 else None)
        outcome = searchrl(*asked)
    assert outcome.code == 130
    assert outcome.stderr.splitlines()[-1] == "cancelled"
    assert steps_saved(out) == ["step_000002"]
    assert good(*asked, "--resume").code == 0
    assert (out / "STATUS").read_text() == "success\n"


@pytest.mark.pipeline
@pytest.mark.parametrize("algorithm", ["rloo", "reinforce_plus_plus_baseline"])
def test_other_algorithms_train_through_the_same_loop(
    algorithm: str, model: Path, tmp_path: Path
) -> None:
    seen: list[dict[str, float]] = []
    note = lambda _, metrics: seen.append(metrics)  # noqa: E731
    recipe = small_recipe(model, f"learning.algorithm={algorithm}", "run.steps=2")
    train(ParityExperiment(recipe, tmp_path), RunDirectory(tmp_path), on_step=note)
    assert [metrics["old_kl"] for metrics in seen] == [0, 0]
    assert any(metrics["grad_norm"] > 0 for metrics in seen)
    assert (tmp_path / "STATUS").read_text() == "success\n"


def test_a_card_names_a_hub_model_and_no_path_of_this_machine(model: Path) -> None:
    local = model_card(small_recipe(model), "GRPO", {"Steps": "4"})
    assert str(model.parent) not in local
    assert "base_model" not in local
    assert f"| Trained from | `{model.name}` |\n| Training | GRPO |" in local
    hub = small_recipe(model, "searcher.model=Qwen/Qwen3-0.6B")
    assert '\nbase_model: "Qwen/Qwen3-0.6B"\n---\n' in model_card(hub, "GRPO", {})
