"""Metric services that raise, hang or are missing, and the real ones where they are installed."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from searchrl.models.local import LocalModel
from searchrl.reporting import services
from searchrl.reporting.services import open_sinks
from searchrl.reporting.sinks import BackgroundSink, RunFacts, Sinks
from searchrl.training.run_directory import RunDirectory
from searchrl.training.trainer import train
from tests.training_fixtures import ParityExperiment, save_model, small_recipe

NEVER = 60.0


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set at the end of a test, so that whatever hangs on it comes to its end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def facts(tmp_path: Path) -> RunFacts:
    return RunFacts("project", "first", "abc", tmp_path, {"seed": 3}, step=0)


class Recorder:
    """A sink that keeps what it gets, after doing what a test asks for."""

    def __init__(
        self,
        on_log: Callable[[], object] = lambda: None,
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False
        self._on_log, self._on_close = on_log, on_close

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._on_log()
        self.rows.append((step, dict(metrics)))

    def close(self) -> None:
        self._on_close()
        self.closed = True


def fail() -> None:
    raise RuntimeError("no\nroute")


def leave() -> None:
    raise SystemExit(1)


def steps(sink: BackgroundSink, count: int, seconds: float = NEVER) -> None:
    sinks = Sinks([sink])
    for step in range(1, count + 1):
        sinks.log(step, {"reward/mean": step / 10, "grad_norm": float("nan")})
    sinks.close(seconds)


def test_a_healthy_service_gets_every_finite_number_in_order(
    facts: RunFacts, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, told = Recorder(), []

    def open_it(facts: RunFacts) -> Recorder:
        told.append((facts, threading.current_thread()))
        return recorder

    sink = BackgroundSink("fake", open_it, facts)
    steps(sink, 30)
    assert recorder.rows == [(step, {"reward/mean": step / 10}) for step in range(1, 31)]
    assert recorder.closed
    assert told[0][0] is facts
    assert told[0][1] is not threading.main_thread()
    assert (sink.dropped, caplog.records) == (0, [])


@pytest.mark.parametrize("error", [fail, leave])
@pytest.mark.parametrize(("place", "lost"), [("open", 5), ("log", 5), ("close", 0)])
def test_a_service_that_raises_warns_once_and_counts_what_is_lost(
    place: str,
    lost: int,
    error: Callable[[], None],
    facts: RunFacts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def open_it(facts: RunFacts) -> Recorder:
        if place == "open":
            error()
        nothing = lambda: None  # noqa: E731
        return Recorder(
            error if place == "log" else nothing, error if place == "close" else nothing
        )

    sink = BackgroundSink("fake", open_it, facts)
    steps(sink, 5)
    assert sink.dropped == lost
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("fake: no route; " if error is fail else "fake: 1; ")
    assert said[1:] == (["fake: 5 steps were not written"] if lost else [])


@pytest.mark.parametrize("place", ["open", "log", "close"])
def test_a_service_that_hangs_is_left_behind(
    place: str, facts: RunFacts, released: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    reached = threading.Event()

    def hang() -> None:
        reached.set()
        released.wait()

    def open_it(facts: RunFacts) -> Recorder:
        if place == "open":
            hang()
        nothing = lambda: None  # noqa: E731
        return Recorder(hang if place == "log" else nothing, hang if place == "close" else nothing)

    sink = BackgroundSink("fake", open_it, facts)
    steps(sink, 3, seconds=0.05)
    assert "fake: did not finish in time and is left behind" in caplog.text
    assert sink._thread.daemon
    assert reached.wait(NEVER)


def test_a_queue_that_is_full_drops_and_never_waits(
    facts: RunFacts, released: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    taken = threading.Event()

    def hang() -> None:
        taken.set()
        released.wait()

    sink = BackgroundSink("fake", lambda facts: Recorder(hang), facts, capacity=4)
    sink.log(1, {})
    assert taken.wait(NEVER)
    for step in range(2, 12):
        sink.log(step, {})
    assert sink.dropped == 6
    sink.close(time.monotonic())
    assert "steps were not written" in caplog.text


def test_one_service_that_hangs_does_not_take_another_with_it(
    facts: RunFacts, released: threading.Event
) -> None:
    recorder = Recorder()
    hanging = BackgroundSink("hanging", lambda facts: Recorder(released.wait), facts)
    sinks = Sinks([BackgroundSink("healthy", lambda facts: recorder, facts), hanging])
    for step in range(3):
        sinks.log(step, {})
    while len(recorder.rows) < 3:
        time.sleep(0.001)
    sinks.close(0.05)
    assert recorder.closed


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_service_that_is_not_installed_says_what_to_install(
    name: Any, facts: RunFacts, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    sinks = open_sinks((name,), facts)
    sinks.log(1, {})
    sinks.close(NEVER)
    assert f"pip install 'searchrl[{name}]'" in caplog.text


def fake_module(name: str, monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class FakeRun(SimpleNamespace):
    """The run of Weights & Biases or Trackio: notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *positional, **named: self.calls.append((name, positional, named))


def test_wandb_resumes_the_run_of_the_directory_and_keeps_our_steps(
    facts: RunFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, begun = FakeRun(), []

    def init(**values: Any) -> FakeRun:
        begun.append(values)
        return run

    fake_module("wandb", monkeypatch, init=init, Settings=dict)
    sinks = open_sinks(("wandb",), facts)
    sinks.log(7, {"entropy": 0.5})
    sinks.close(NEVER)
    [values] = begun
    assert (values["project"], values["id"], values["resume"]) == ("project", "abc", "allow")
    assert values["config"] == {"seed": 3}
    assert run.calls == [
        ("define_metric", ("*",), {"step_metric": "step"}),
        ("log", ({"step": 7, "entropy": 0.5},), {}),
        ("finish", (), {}),
    ]


def test_trackio_leaves_standard_output_alone(
    facts: RunFacts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = FakeRun()
    names: list[str] = []

    def init(name: str, **_: Any) -> FakeRun:
        names.append(name)
        vars(sys.modules["trackio"])["print"]("* Trackio project initialized")
        return run

    fake_module("trackio", monkeypatch, init=init)
    fake_module("trackio.run", monkeypatch)
    sinks = open_sinks(("trackio",), facts)
    sinks.log(7, {"entropy": 0.5})
    sinks.close(NEVER)
    assert names == ["first-abc"]
    assert run.calls == [("log", ({"entropy": 0.5},), {"step": 7}), ("finish", (), {})]
    assert capsys.readouterr() == ("", "* Trackio project initialized\n")


def test_tensorboard_writes_events_that_it_reads_back(facts: RunFacts) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = open_sinks(("tensorboard",), facts)
    for step in (1, 2):
        sinks.log(step, {"reward/mean": step / 2})
    sinks.close(NEVER)
    events = EventAccumulator(str(facts.directory / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.5), (2, 1.0)]


@pytest.mark.pipeline
def test_training_is_the_same_with_services_that_fail(
    random_model: LocalModel,
    tmp_path: Path,
    released: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()
    openers = {
        "wandb": lambda facts: Recorder(released.wait),
        "trackio": lambda facts: fail(),
        "tensorboard": lambda facts: recorder,
    }
    monkeypatch.setattr(services, "_OPENERS", openers)
    monkeypatch.setattr("searchrl.training.trainer.CLOSE_SECONDS", 0.2)
    model = save_model(random_model, tmp_path / "model")

    def rows(out: Path, *overrides: str) -> list[dict[str, Any]]:
        recipe = small_recipe(model, "run.steps=2", *overrides)
        train(ParityExperiment(recipe, out), RunDirectory(out))
        assert (out / "STATUS").read_text() == "success\n"
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]

    plain = rows(tmp_path / "plain")
    with caplog.at_level(logging.WARNING):
        tracked = rows(
            tmp_path / "tracked", 'tracking.services=["wandb", "trackio", "tensorboard"]'
        )
    assert tracked == plain
    assert not (tmp_path / "plain" / "ID").exists()
    assert [step for step, _ in recorder.rows] == [1, 2]
    assert "trackio: no route" in caplog.text
    assert "wandb: did not finish in time" in caplog.text
