"""The training loop: rollout, update, log, checkpoint, until the recipe's steps are done.

A step is a function of the weights and the step number alone, so a run that was killed goes on
from its last checkpoint as if nothing had happened: later metrics and episodes are dropped and made
again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.agents.episode import ActionKind, EndReason
from searchrl.agents.trained import open_agent
from searchrl.errors import InputError
from searchrl.experiment import Experiment
from searchrl.reporting.metrics_log import MetricsLog
from searchrl.rewards.custom import load_function
from searchrl.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_final,
)
from searchrl.training.learner import Learner, Metrics
from searchrl.training.questions import training_questions
from searchrl.training.rollout import Rollout, collect, questions_of_step
from searchrl.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from searchrl.models.local import LocalModel

OnStep = Callable[[int, Metrics], None]


def train(
    experiment: Experiment,
    run: RunDirectory,
    resume: bool = False,
    on_step: OnStep = lambda step, metrics: None,
) -> Path:
    """Train the recipe's searcher in a run directory.

    Args:
        experiment: the opened recipe.
        run: where to write.
        resume: go on from the last checkpoint of this run.
        on_step: told the number of finished steps and the step's metrics.

    Returns:
        The trained searcher, ``checkpoints/final``.

    Raises:
        InputError: the run directory or the recipe cannot be used.
        InfrastructureError: a service stayed down; the last checkpoint stands.
    """
    # Models and the user's function are loaded before the directory becomes a run: what cannot be
    # loaded leaves no trace.
    trainer = _Trainer(experiment, run)
    with run.open(experiment.recipe, resume):
        return asyncio.run(trainer.run(on_step))


class _Trainer:
    def __init__(self, experiment: Experiment, run: RunDirectory) -> None:
        self._experiment = experiment
        self._recipe = experiment.recipe
        self._run = run
        if self._recipe.reward.function is not None:
            load_function(self._recipe.reward.function)
        self._searcher: LocalModel = experiment.trainable()
        needs_reference = self._recipe.learning.kl_coefficient > 0
        self._learner = Learner(
            self._searcher.model,
            self._recipe.learning,
            self._recipe.rollout.temperature,
            experiment.searcher().model if needs_reference else None,
        )

    async def run(self, on_step: OnStep) -> Path:
        """All steps from the last checkpoint on."""
        recipe, tokenizer = self._recipe, self._searcher.tokenizer
        questions = await training_questions(self._experiment)
        self._run.pin_questions(questions)
        agent = open_agent(recipe.agent, self._searcher, self._experiment.train.retriever)
        reward = self._experiment.reward()
        log = MetricsLog(self._run.metrics)
        for step in range(self._start(log), recipe.run.steps):
            asked = questions_of_step(
                questions, step, recipe.rollout.questions_per_step, recipe.seed
            )
            started = time.perf_counter()
            rollout = await collect(
                agent, reward, asked, recipe.rollout, recipe.seed, step, self._smallest_group()
            )
            metrics = self._learn(rollout, step, time.perf_counter() - started)
            log.append(step + 1, metrics)
            self._run.write_episodes(step + 1, rollout.episodes[: recipe.run.keep_episodes])
            if (step + 1) % recipe.run.save_every == 0 or step + 1 == recipe.run.steps:
                save_checkpoint(
                    self._run.checkpoints,
                    step + 1,
                    self._learner,
                    tokenizer,
                    recipe.run.keep_checkpoints,
                )
            on_step(step + 1, metrics)
        return save_final(self._run.checkpoints, self._searcher.model, tokenizer)

    def _start(self, log: MetricsLog) -> int:
        """Load the last checkpoint, drop what came after it, and return its step."""
        found = latest_checkpoint(self._run.checkpoints)
        step = 0
        if found is not None:
            step, path = found
            if step > self._recipe.run.steps:
                raise InputError(
                    f"{path}: the run has done {step} steps already; "
                    f"set run.steps to {step} or more, not {self._recipe.run.steps}"
                )
            load_checkpoint(path, self._learner)
        log.truncate_after(step)
        self._run.drop_episodes_after(step)
        return step

    def _smallest_group(self) -> int:
        return 2 if self._recipe.learning.algorithm == "grpo" else 1

    def _learn(self, rollout: Rollout, step: int, rollout_seconds: float) -> Metrics:
        if not rollout.groups:
            raise InputError(
                f"step {step + 1}: no episode can be learned from; raise the response budget"
            )
        metrics = rollout_metrics(rollout)
        started = time.perf_counter()
        metrics |= self._learner.update(rollout.groups, step)
        metrics["seconds/rollout"] = rollout_seconds
        metrics["seconds/update"] = time.perf_counter() - started
        return metrics


def rollout_metrics(rollout: Rollout) -> Metrics:
    """What a step's episodes looked like, means over those that did not fail."""
    episodes = [episode for episode in rollout.episodes if episode.error is None]
    turns = [turn for episode in episodes for turn in episode.turns]
    metrics: Metrics = {
        "episodes/failed": float(len(rollout.episodes) - len(episodes)),
        "episodes/finished": _mean([episode.end is EndReason.FINISHED for episode in episodes]),
        "episodes/searches": _mean([episode.searches for episode in episodes]),
        "episodes/invalid_turns": _mean([t.action.kind is ActionKind.INVALID for t in turns]),
        "episodes/response_tokens": _mean([sum(e.trainable_mask) for e in episodes]),
        "episodes/context_passages": _mean([len(episode.context) for episode in episodes]),
        "groups/all_equal": _mean([len(set(group.rewards)) == 1 for group in rollout.groups]),
        "reward/mean": _mean([reward for group in rollout.groups for reward in group.rewards]),
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
