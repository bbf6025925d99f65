"""A run of verl from beginning to end: launched, followed, restarted, brought home.

The run directory is the one ``train`` writes: the same ``config.json``, metrics by the same names,
episodes for reading, and ``checkpoints/final``, the searcher in Hugging Face form, exchanged whole
after every checkpoint of verl. verl's own checkpoints, from which a killed run goes on, stay in
``verl/checkpoints``. A run that died starts again from the newest of them; how often without a new
one in between is ``verl.restarts``. On a running cluster it first waits for GPUs in the place of
those that a dead machine took along. An attempt that did not get to a single step at the start of a
run is an error of the setting, and ends it, unless the machine was too busy to start Ray. A guard
that stops a run in process stops it here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from searchrl.data.jsonl import write_jsonl
from searchrl.data.storage import atomic_directory
from searchrl.distributed.process import RAY_TOO_SLOW, last_error, running
from searchrl.distributed.schedule import write_schedule
from searchrl.distributed.services import kept_episodes
from searchrl.distributed.translation import Place, command_line, translate
from searchrl.distributed.verl_metrics import VerlLog
from searchrl.errors import InfrastructureError, InputError
from searchrl.experiment import Experiment
from searchrl.recipe import Recipe
from searchrl.reporting.metrics_log import MetricsLog, read_metrics
from searchrl.training.checkpoint import FINAL
from searchrl.training.guards import Row, guard_metrics, heed, judge
from searchrl.training.questions import training_questions
from searchrl.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

OnStep = Callable[[int, dict[str, float]], None]
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Launch:
    """What starts verl.

    Attributes:
        command: the program and its arguments.
        environment: variables that it gets.
        settings: the configuration that the arguments spell out.
    """

    command: list[str]
    environment: dict[str, str]
    settings: dict[str, JsonValue]


def plan(recipe: Recipe, run: Path, ray_address: str | None = None, attempt: int = 1) -> Launch:
    """How a recipe is trained; nothing is started and nothing written.

    Args:
        recipe: the recipe.
        run: the run directory; the same path on every machine.
        ray_address: a running cluster's; a cluster on this machine is started when left out.
        attempt: counts the restarts; each logs into files of its own.

    Raises:
        InputError: verl cannot do what the recipe asks for.
    """
    run = run.resolve()
    place = Place(run, run / "logs" / f"verl-{attempt}.jsonl")
    settings = translate(recipe, place)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *command_line(settings)]
    environment = {"VERL_FILE_LOGGER_PATH": str(place.metrics)}
    if ray_address is not None:
        environment["RAY_ADDRESS"] = ray_address
    return Launch(command, environment, settings)


def train_on_verl(
    experiment: Experiment,
    run: RunDirectory,
    resume: bool = False,
    ray_address: str | None = None,
    on_step: OnStep = lambda step, metrics: None,
) -> Path:
    """Train the recipe's searcher with verl.

    Args:
        experiment: the opened recipe.
        run: where to write; the same path on every machine.
        resume: go on from verl's last checkpoint in this run.
        ray_address: a running Ray cluster's address.
        on_step: told the number of finished steps and the step's metrics.

    Returns:
        The trained searcher, ``checkpoints/final``.

    Raises:
        InputError: the recipe or the run directory cannot be used, or verl does not start.
        InfrastructureError: the run died more often than ``verl.restarts`` allows.
        UnstableError: a guard stopped the run; verl's last checkpoint stands.
    """
    plan(experiment.recipe, run.path, ray_address)
    with run.open(experiment.recipe, resume):
        questions = asyncio.run(training_questions(experiment))
        run.pin_questions(questions)
        place = Place(run.path.resolve(), run.metrics)
        write_schedule(place.questions, experiment.recipe, questions)
        return _Follower(experiment.recipe, run, place, ray_address, on_step).run()


class _Follower:
    """Keeps verl going until the last step is done."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunDirectory,
        place: Place,
        ray_address: str | None,
        on_step: OnStep,
    ) -> None:
        self._recipe = recipe
        self._run = run
        self._place = place
        self._ray_address = ray_address
        self._on_step = on_step
        self._log = MetricsLog(run.metrics)
        self._history: list[Row] = []
        self._home = 0

    def run(self) -> Path:
        kept = latest_step(self._place.checkpoints)
        begun, failures = kept > 0, 0
        while kept < self._recipe.run.steps:
            number = 1 + len(list((self._run.path / "logs").glob("verl-*.log")))
            steps, log = self._attempt(number)
            before, kept = kept, latest_step(self._place.checkpoints)
            if kept < self._recipe.run.steps:
                begun = begun or steps > 0
                failures = 0 if kept > before else failures + 1
                self._judge(begun, failures, f"{last_error(log)}; see {log}")
        self._bring_home()
        return self._run.checkpoints / FINAL

    def _judge(self, begun: bool, failures: int, reason: str) -> None:
        """End a run that will not get further.

        Raises:
            InputError: it never did a step, though Ray was there.
            InfrastructureError: it was restarted as often as it may be.
        """
        if not begun and RAY_TOO_SLOW not in reason:
            raise InputError(f"verl did not get to its first step: {reason}")
        if failures > self._recipe.verl.restarts:
            raise InfrastructureError(f"verl died again without a new checkpoint: {reason}")
        logger.warning("verl died and is started again: %s", reason)

    def _attempt(self, number: int) -> tuple[int, Path]:
        """Run verl once; returns how many steps it did, and its log."""
        launch = plan(self._recipe, self._run.path, self._ray_address, number)
        start = latest_step(self._place.checkpoints)
        self._log.truncate_after(start)
        self._run.drop_episodes_after(start)
        self._history = list(read_metrics(self._run.metrics)) if start else []
        log = self._run.path / "logs" / f"verl-{number}.log"
        steps = VerlLog(log.with_suffix(".jsonl"))
        done = 0
        if number > 1 and self._ray_address is not None and not self._has_gpus(launch, log):
            return 0, log
        with running(launch.command, launch.environment, log) as process:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                done += self._follow(steps)
        return done + self._follow(steps), log

    def _has_gpus(self, launch: Launch, log: Path) -> bool:
        """Wait for the cluster to be whole; what is missing stands in the log when it is not."""
        cluster = self._recipe.verl
        wanted = (cluster.nodes * cluster.gpus_per_node, cluster.machine_seconds)
        command = [sys.executable, "-m", "searchrl.distributed.await_gpus", *map(str, wanted)]
        with running(command, launch.environment, log) as process:
            return process.wait() == 0

    def _follow(self, steps: VerlLog) -> int:
        """Write down what verl finished; returns how many steps that was."""
        count = 0
        for step, metrics in steps.read():
            verdicts = judge([*self._history, metrics], self._recipe.guards)
            metrics |= guard_metrics(verdicts)
            self._history.append(metrics)
            self._log.append(step, metrics)
            self._gather_episodes(step)
            heed(verdicts, self._history, step)
            self._on_step(step, metrics)
            count += 1
        self._bring_home()
        return count

    def _gather_episodes(self, step: int) -> None:
        """Put the files of the workers together to the run's own."""
        folder = kept_episodes(self._place.run, step)
        rows = [json.loads(file.read_bytes()) for file in sorted(folder.glob("*.json"))]
        write_jsonl(self._run.episodes / f"step_{step:06d}.jsonl", rows)
        shutil.rmtree(folder, ignore_errors=True)

    def _bring_home(self) -> None:
        """Make ``checkpoints/final`` of verl's newest checkpoint, if it is a newer one."""
        step = latest_step(self._place.checkpoints)
        if step <= self._home:
            return
        source = self._place.checkpoints / f"global_step_{step}" / "actor" / "huggingface"
        about = {"kind": "searcher", "step": step}
        with atomic_directory(self._run.checkpoints / FINAL, about) as out:
            shutil.copytree(source, out, dirs_exist_ok=True)
        self._home = step


def latest_step(checkpoints: Path) -> int:
    """The step of verl's newest whole checkpoint; 0 when there is none."""
    noted = checkpoints / "latest_checkpointed_iteration.txt"
    text = noted.read_text().strip() if noted.is_file() else ""
    return int(text) if text.isdigit() else 0
