"""The training loop: rollout, update, log, checkpoint, until the recipe's steps are done.

A step is a function of the weights and the step number alone, so a run that was killed goes on
from its last checkpoint as if nothing had happened: later metrics and episodes are dropped and made
again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.agents.episode import ActionKind, EndReason
from searchrl.agents.trained import open_agent
from searchrl.data.questions import Question
from searchrl.errors import InputError, UnstableError
from searchrl.experiment import Experiment
from searchrl.reporting.metrics_log import MetricsLog, read_metrics
from searchrl.rewards.custom import load_function
from searchrl.rewards.gain import scoring_fingerprint, unsolved
from searchrl.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_final,
)
from searchrl.training.dynamic_sampling import collect_teaching
from searchrl.training.guards import Level, Row, Verdict, guard_metrics, judge
from searchrl.training.learner import Learner, Metrics
from searchrl.training.precompute import precompute
from searchrl.training.rollout import Rollout, collect, questions_of_step
from searchrl.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from searchrl.models.local import LocalModel

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)

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
        UnstableError: a guard stopped the run; the last checkpoint stands.
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
        questions = await self._questions()
        self._run.pin_questions(questions)
        agent = open_agent(recipe.agent, self._searcher, self._experiment.train.retriever)
        reward = self._experiment.reward()
        log = MetricsLog(self._run.metrics)
        start = self._start(log)
        history: list[Row] = [*read_metrics(log.path)] if start else []
        for step in range(start, recipe.run.steps):
            asked = questions_of_step(
                questions, step, recipe.rollout.questions_per_step, recipe.seed
            )
            started = time.perf_counter()

            async def roll(some: Sequence[Question], step: int = step) -> Rollout:
                return await collect(
                    agent, reward, some, recipe.rollout, recipe.seed, step, self._smallest_group()
                )

            rollout, sampling = await collect_teaching(
                roll, questions, asked, recipe.rollout.refill_rounds, recipe.seed, step
            )
            seconds = time.perf_counter() - started
            metrics = self._learn(rollout, step, seconds) | sampling
            verdicts = judge([*history, metrics], recipe.guards)
            metrics |= guard_metrics(verdicts)
            history.append(metrics)
            log.append(step + 1, metrics)
            self._run.write_episodes(step + 1, rollout.episodes[: recipe.run.keep_episodes])
            _heed(verdicts, history, step + 1)
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

    async def _questions(self) -> Sequence[Question]:
        """The training questions, without those naive RAG already solves."""
        split, options = self._experiment.train, self._recipe.reward
        if options.kind != "gain_beyond_rag":
            return split.questions
        generator, judge = self._experiment.generator, self._experiment.judge
        cache = self._experiment.cache()
        await precompute(split.questions, split.retriever, options.rag_k, generator, judge, cache)
        if not options.drop_solved:
            return split.questions
        left = unsolved(split.questions, cache, scoring_fingerprint(generator, judge))
        if not left:
            raise InputError("naive RAG solves every training question; nothing is left to learn")
        return left

    def _smallest_group(self) -> int:
        return 2 if self._recipe.learning.compares_groups else 1

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


def _heed(verdicts: Sequence[Verdict], history: Sequence[Row], step: int) -> None:
    """Log what is newly wrong; end the run where a guard says so."""
    before = history[-2] if len(history) > 1 else {}
    for verdict in verdicts:
        if verdict.level is Level.STOP:
            raise UnstableError(f"step {step}: {verdict.message}")
        if verdict.level is Level.WARNING and not before.get(f"guards/{verdict.guard}"):
            logger.warning("step %d: %s", step, verdict.message)


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
