"""The training loop: rollout, update, log, checkpoint, until the recipe's steps are done.

A step is a function of the weights and the step number alone, so a run that was killed goes on
from its last checkpoint as if nothing had happened: later metrics and episodes are dropped and made
again. A signal to stop ends rollouts at once and updates when they are done, and the last whole
step is saved.

Where several processes train (``parallel``), each runs this loop over the same episodes, metrics
and decisions; the first one alone writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.agents.agent import Agent
from searchrl.agents.episode import ActionKind, EndReason
from searchrl.agents.trained import open_agent
from searchrl.data.questions import Question
from searchrl.errors import InputError
from searchrl.experiment import Experiment
from searchrl.reporting.metrics_log import MetricsLog, read_metrics
from searchrl.reporting.services import open_sinks
from searchrl.reporting.sinks import CLOSE_SECONDS, RunFacts, Sinks
from searchrl.rewards.custom import load_function
from searchrl.rewards.protocol import RewardFunction
from searchrl.seeding import derive_seed, seed_global_streams
from searchrl.training.checkpoint import (
    FINAL,
    drop_best_after,
    latest_checkpoint,
    load_checkpoint,
    save_best,
    save_checkpoint,
    save_final,
)
from searchrl.training.dynamic_sampling import collect_teaching
from searchrl.training.guards import Row, guard_metrics, heed, judge
from searchrl.training.interruption import Interruption
from searchrl.training.learner import Learner, Metrics
from searchrl.training.model_card import model_card
from searchrl.training.parallel.episodes import attempt_together
from searchrl.training.parallel.opening import check_device, open_layout
from searchrl.training.parallel.processes import ALONE, Processes, from_first
from searchrl.training.questions import training_questions
from searchrl.training.rollout import Rollout, collect, questions_of_step
from searchrl.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from searchrl.models.local import LocalModel

logger = logging.getLogger(__name__)

OnStep = Callable[[int, Metrics], None]


def train(
    experiment: Experiment,
    run: RunDirectory,
    resume: bool = False,
    on_step: OnStep = lambda step, metrics: None,
    processes: Processes = ALONE,
) -> Path:
    """Train the recipe's searcher in a run directory.

    Args:
        experiment: the opened recipe.
        run: where to write.
        resume: go on from the last checkpoint of this run.
        on_step: told the number of finished steps and the step's metrics.
        processes: those that train together; all of them have to call this.

    Returns:
        The trained searcher, ``checkpoints/final``.

    Raises:
        InputError: the run directory or the recipe cannot be used.
        InfrastructureError: a service stayed down; the last checkpoint stands.
        UnstableError: a guard stopped the run; the last checkpoint stands.
        KeyboardInterrupt: a signal came; the last whole step is saved.
    """
    # Models and the user's function are loaded before the directory becomes a run: what cannot be
    # loaded leaves no trace.
    trainer = _Trainer(experiment, run, processes)
    first = processes.rank == 0
    with run.open(experiment.recipe, resume, processes.size) if first else nullcontext():
        return trainer.run(on_step)


class _Trainer:
    def __init__(self, experiment: Experiment, run: RunDirectory, processes: Processes) -> None:
        self._experiment = experiment
        self._recipe = experiment.recipe
        self._run_directory = run
        self._processes = processes
        self._writes = processes.rank == 0
        check_device(experiment.local_searcher.device, processes)
        if processes.size > 1 and self._recipe.rollout.engine == "vllm":
            raise InputError(
                f'rollout.engine = "vllm" trains in one process and there are {processes.size}: '
                'set "native", or start without torchrun'
            )
        if self._recipe.reward.function is not None:
            load_function(self._recipe.reward.function)
        rollout = self._recipe.rollout
        vllm = rollout.vllm if rollout.engine == "vllm" else None
        self._searcher: LocalModel = experiment.trainable(vllm)
        needs_reference = self._recipe.learning.kl_coefficient > 0
        self._learner = Learner(
            self._searcher.model,
            self._recipe.learning,
            self._recipe.rollout.temperature,
            experiment.reference(self._searcher) if needs_reference else None,
            self._recipe.run.steps,
            open_layout(processes, self._recipe.layout, self._searcher.model),
        )
        self._interruption = Interruption()
        self._history: list[Row] = []
        self._done = self._saved = 0
        """Steps that are whole, with weights and metrics, and those that a checkpoint holds."""
        self._updating = False
        self._log: MetricsLog | None = None
        """Of the process that writes."""
        self._sinks = Sinks(())

    def run(self, on_step: OnStep) -> Path:
        """All steps from the last checkpoint on."""
        with self._interruption.watch():
            try:
                return self._interruption.run(self._run(on_step))
            except KeyboardInterrupt:
                owed = self._done > self._saved and not self._updating
                if owed and not self._interruption.insisted:
                    self._save_checkpoint()
                    logger.warning("step %d is saved; --resume goes on from it", self._done)
                raise
            finally:
                self._sinks.close(0.0 if self._interruption.insisted else CLOSE_SECONDS)

    async def _run(self, on_step: OnStep) -> Path:
        recipe = self._recipe
        questions = await self._questions()
        agent = open_agent(recipe.agent, self._searcher, self._experiment.train.retriever)
        reward = self._experiment.reward()
        self._start()
        # One process of several stops at no place of its own; see _agree.
        several = self._processes.size > 1
        with self._interruption.hold() if several else nullcontext():
            for step in range(self._done, recipe.run.steps):
                seed_global_streams(derive_seed(recipe.seed, "global", step))
                rollout, metrics = await self._roll_out(agent, reward, questions, step)
                with self._interruption.hold():
                    metrics = self._finish(step, rollout, metrics)
                on_step(step + 1, metrics)
                self._agree()
        folder = self._run_directory.checkpoints
        if not self._writes:
            return folder / FINAL
        return save_final(folder, self._searcher.model, self._searcher.tokenizer, self._card())

    async def _questions(self) -> Sequence[Question]:
        """What is trained on; worked out by the first process for all."""
        if self._writes:
            questions = await training_questions(self._experiment)
            self._run_directory.pin_questions(questions)
            from_first(self._processes, [question.id for question in questions])
            return questions
        known = {question.id: question for question in self._experiment.train.questions}
        return [known[name] for name in from_first(self._processes, None)]

    def _agree(self) -> None:
        """Stop everywhere where a signal has come to any of several processes.

        Raises:
            KeyboardInterrupt: one has.
        """
        if self._processes.size > 1 and any(self._processes.gather(self._interruption.received)):
            raise KeyboardInterrupt

    def _finish(self, step: int, rollout: Rollout, metrics: Metrics) -> Metrics:
        """All of a step behind its episodes: learn, judge, write, save; returns all metrics."""
        recipe = self._recipe
        self._updating = True
        metrics |= self._learn(rollout, step)
        verdicts = judge([*self._history, metrics], recipe.guards)
        metrics |= guard_metrics(verdicts)
        self._history.append(metrics)
        if self._log is not None:
            self._log.append(step + 1, metrics)
            self._sinks.log(step + 1, metrics)
            kept = rollout.episodes[: recipe.run.keep_episodes]
            self._run_directory.write_episodes(step + 1, kept)
        heed(verdicts, self._history, step + 1)
        self._done, self._updating = step + 1, False
        if self._done % recipe.run.save_every == 0 or self._done == recipe.run.steps:
            self._save_best()
            self._save_checkpoint()
        return metrics

    def _start(self) -> None:
        """Load the last checkpoint; the first process drops what came after it."""
        folder = self._run_directory.checkpoints
        found = latest_checkpoint(folder) if self._writes else None
        told = from_first(self._processes, found and (found[0], str(found[1])))
        if told is not None:
            step, path = told
            if step > self._recipe.run.steps:
                raise InputError(
                    f"{path}: the run has done {step} steps already; "
                    f"set run.steps to {step} or more, not {self._recipe.run.steps}"
                )
            load_checkpoint(Path(path), self._learner)
            self._done = self._saved = step
        if self._writes:
            self._log = MetricsLog(self._run_directory.metrics)
            self._history += self._cut_back(self._log)
            self._sinks = self._open_sinks()
        self._history = from_first(self._processes, self._history)

    def _cut_back(self, log: MetricsLog) -> list[Row]:
        """Drop what later steps have left; returns the metrics of those before."""
        drop_best_after(self._run_directory.checkpoints, self._done)
        log.truncate_after(self._done)
        self._run_directory.drop_episodes_after(self._done)
        return [*read_metrics(log.path)] if log.path.is_file() else []

    def _open_sinks(self) -> Sinks:
        recipe, directory = self._recipe, self._run_directory
        if not recipe.tracking.services:
            return Sinks(())
        facts = RunFacts(
            project=recipe.tracking.project,
            name=directory.path.resolve().name,
            identity=directory.identity(),
            directory=directory.path,
            config=recipe.model_dump(mode="json"),
            step=self._done,
        )
        return open_sinks(recipe.tracking.services, facts)

    def _save_checkpoint(self) -> None:
        save_checkpoint(
            self._run_directory.checkpoints,
            self._done,
            self._learner,
            self._searcher.tokenizer,
            self._recipe.run.keep_checkpoints,
            self._writes,
        )
        self._saved = self._done

    def _save_best(self) -> None:
        """Keep the searcher apart where the steps up to it earned more than those up to any."""
        if not self._writes:
            return
        save_best(
            self._run_directory.checkpoints,
            self._done,
            self._latest_reward(),
            self._searcher.model,
            self._searcher.tokenizer,
            self._card(),
        )

    def _latest_reward(self) -> float:
        """Mean reward of as many last steps as lie between two checkpoints."""
        rows = self._history[-self._recipe.run.save_every :]
        return _mean([row["reward/mean"] for row in rows])

    def _card(self) -> str:
        recipe = self._recipe
        numbers = {
            "Steps": f"{self._done} of {recipe.run.steps}",
            "Episodes a step": f"{recipe.rollout.questions_per_step * recipe.rollout.group_size:,}",
            "Mean reward of the latest steps": f"{self._latest_reward():.3f}",
        }
        return model_card(recipe, recipe.learning.algorithm.upper(), numbers)

    async def _roll_out(
        self, agent: Agent, reward: RewardFunction, questions: Sequence[Question], step: int
    ) -> tuple[Rollout, Metrics]:
        recipe, started = self._recipe, time.perf_counter()
        options, seed = recipe.rollout, recipe.seed
        sharing = partial(
            attempt_together, processes=self._processes, interruption=self._interruption
        )

        async def roll(some: Sequence[Question]) -> Rollout:
            smallest = 2 if recipe.learning.compares_groups else 1
            return await collect(agent, reward, some, options, seed, step, smallest, sharing)

        asked = questions_of_step(questions, step, options.questions_per_step, seed)
        rollout, metrics = await collect_teaching(roll, questions, asked, options, seed, step)
        if not rollout.groups:
            raise InputError(
                f"step {step + 1}: no episode can be learned from; raise the response budget"
            )
        metrics |= self._searcher.measures() | {"seconds/rollout": time.perf_counter() - started}
        return rollout, rollout_metrics(rollout) | metrics

    def _learn(self, rollout: Rollout, step: int) -> Metrics:
        started = time.perf_counter()
        self._searcher.rest()
        metrics = self._learner.update(rollout.groups, step)
        return metrics | {"seconds/update": time.perf_counter() - started}


def rollout_metrics(rollout: Rollout) -> Metrics:
    """What a step's episodes looked like, means over those that did not fail."""
    episodes = [episode for episode in rollout.episodes if episode.error is None]
    turns = [turn for episode in episodes for turn in episode.turns]
    metrics: Metrics = {
        "episodes/failed": float(len(rollout.episodes) - len(episodes)),
        "episodes/failed_share": 1 - len(episodes) / max(1, len(rollout.episodes)),
        "episodes/finished": _mean([episode.end is EndReason.FINISHED for episode in episodes]),
        "episodes/truncated": _mean([episode.end is EndReason.TRUNCATED for episode in episodes]),
        "episodes/searches": _mean([episode.searches for episode in episodes]),
        "episodes/invalid_turns": _mean([t.action.kind is ActionKind.INVALID for t in turns]),
        "episodes/response_tokens": _mean([sum(e.trainable_mask) for e in episodes]),
        "episodes/context_passages": _mean([len(episode.context) for episode in episodes]),
        # Of groups that are left out of the update too, or it would not tell how good they are.
        "reward/mean": _mean(
            [v for e in episodes if e.reward and (v := e.reward.value) is not None]
        ),
    }
    for part in sorted({name for e in episodes if e.reward for name in e.reward.parts}):
        values = [e.reward.parts[part] for e in episodes if e.reward and part in e.reward.parts]
        metrics[f"reward/{part}"] = _mean(values)
    recalls = [recall for e in episodes if (recall := e.gold_recall) is not None]
    if recalls:
        metrics["episodes/gold_recall"] = _mean(recalls)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
