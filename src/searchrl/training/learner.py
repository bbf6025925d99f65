"""One policy update from one step's groups of episodes: PPO with a critic, or GRPO.

Order of a step: values and old and reference log-probabilities with the weights that sampled, then
advantages, then one or more optimizer steps. Every loss is a sum over trainable tokens divided by
the number of trainable tokens of its whole optimizer step, so neither micro-batches nor padding
change a result. The old log-probabilities come from the very passes the update repeats, so the
ratio is exactly 1 until the first optimizer step.

Episodes of a GRPO group with equal rewards teach nothing and are not passed through again. Where
nothing in an optimizer step teaches, the step is not taken: weights, moments and weight decay rest.

Differs from the original s3 and Search-R1: they average per micro-batch, and let observation tokens
into GAE, whitening and the critic's loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from searchrl.agents.episode import Episode
from searchrl.errors import SearchRLError
from searchrl.training.advantages import generalized_advantages, group_advantages, whiten
from searchrl.training.batch import TokenBatch, micro_batches
from searchrl.training.losses import (
    clipped_fraction,
    kl_estimates,
    policy_losses,
    value_losses,
)
from searchrl.training.networks import Critic, token_logprobs
from searchrl.training.options import LearningOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Group:
    """The scored episodes of one question in one step; all rewards are there."""

    episodes: tuple[Episode, ...]

    @property
    def rewards(self) -> list[float]:
        """The reward of each episode."""
        values = [episode.reward.value for episode in self.episodes if episode.reward is not None]
        return [value for value in values if value is not None]


@dataclass(slots=True)
class _Sample:
    """One episode on its way through an update; vectors hold its trainable tokens only."""

    episode: Episode
    advantage: float
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    old_logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    reference_logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    old_values: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    returns: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class Learner:
    """Holds what training changes: the searcher, its critic, and their optimizers.

    Args:
        searcher: the policy; trained in place.
        options: the algorithm and its numbers.
        temperature: the one episodes are sampled with.
        reference: frozen copy of the searcher as training began; needed for a KL term only.

    Raises:
        ValueError: the options ask for a KL term and there is no reference.
    """

    def __init__(
        self,
        searcher: PreTrainedModel,
        options: LearningOptions,
        temperature: float,
        reference: PreTrainedModel | None = None,
    ) -> None:
        if options.kl_coefficient > 0 and reference is None:
            raise ValueError("a KL term needs the reference searcher")
        self.searcher = searcher
        self.critic = Critic(searcher) if options.algorithm == "ppo" else None
        self._options = options
        self._temperature = temperature
        self._reference = reference
        self.optimizer = self._adamw(searcher)
        self.critic_optimizer = self._adamw(self.critic) if self.critic is not None else None

    def update(self, groups: Sequence[Group], step: int) -> Metrics:
        """Learn from one step's groups; ``step`` counts from 0 and sets the warm-up.

        Raises:
            SearchRLError: a gradient is not finite; the optimizer step it belongs to is not taken.
        """
        samples = self._samples(groups)
        plan = self._plan(samples)
        metrics = self._look_back(samples, plan)
        self._set_advantages(samples)
        self._set_rates(step)
        totals: Metrics = {}
        for _ in range(self._options.epochs):
            for mini_batch in plan:
                for name, value in self._optimizer_step(mini_batch).items():
                    totals[name] = totals.get(name, 0.0) + value
        steps = self._options.epochs * len(plan)
        return metrics | {name: value / steps for name, value in totals.items()}

    def _samples(self, groups: Sequence[Group]) -> list[_Sample]:
        samples: list[_Sample] = []
        for group in groups:
            if self._options.algorithm == "grpo":
                scaled = self._options.scale_by_deviation
                values = group_advantages(group.rewards, scaled)
            else:
                values = group.rewards
            samples += [
                _Sample(episode, value)
                for episode, value in zip(group.episodes, values, strict=True)
            ]
        return samples

    def _plan(self, samples: Sequence[_Sample]) -> list[list[list[_Sample]]]:
        """Mini-batches of micro-batches, fixed for the whole step."""
        size = math.ceil(len(samples) / self._options.mini_batches)
        plan: list[list[list[_Sample]]] = []
        for start in range(0, len(samples), size):
            mini_batch = samples[start : start + size]
            # Apart, so that a pass of the update holds exactly what its pass of looking back held.
            teaching = [sample for sample in mini_batch if self._teaches(sample)]
            idle = [sample for sample in mini_batch if not self._teaches(sample)]
            plan.append([*self._micro_batches(teaching), *self._micro_batches(idle)])
        return plan

    def _micro_batches(self, samples: Sequence[_Sample]) -> list[list[_Sample]]:
        lengths = [len(sample.episode.token_ids) for sample in samples]
        budget = self._options.tokens_per_micro_batch
        return [[samples[i] for i in batch] for batch in micro_batches(lengths, budget)]

    @torch.no_grad()
    def _look_back(
        self, samples: Sequence[_Sample], plan: Sequence[Sequence[Sequence[_Sample]]]
    ) -> Metrics:
        """Old and reference log-probabilities and old values, with the weights that sampled."""
        mismatch, entropy, reference_kl, tokens = 0.0, 0.0, 0.0, 0
        for micro_batch in (batch for mini_batch in plan for batch in mini_batch):
            batch = self._batch(micro_batch)
            lengths = list(batch.lengths_B)
            old_A, entropy_A = self._logprobs(self.searcher, batch)
            entropy += float(entropy_A.sum())
            mismatch += float(kl_estimates(batch.sampled_logprobs_A, old_A, "k3").sum())
            tokens += old_A.numel()
            for sample, part in zip(micro_batch, old_A.split(lengths), strict=True):
                sample.old_logprobs = part
            if self._reference is not None:
                reference_A, _ = self._logprobs(self._reference, batch)
                reference_kl += float(kl_estimates(old_A, reference_A, "k3").sum())
                for sample, part in zip(micro_batch, reference_A.split(lengths), strict=True):
                    sample.reference_logprobs = part
            if self.critic is not None:
                for sample, part in zip(
                    micro_batch, self._values(self.critic, batch).split(lengths), strict=True
                ):
                    sample.old_values = part
        metrics = {
            "mismatch_kl": mismatch / tokens,
            "entropy": entropy / tokens,
            "trainable_tokens": float(tokens),
        }
        if self._reference is not None:
            metrics["reference_kl"] = reference_kl / tokens
        return metrics

    def _set_advantages(self, samples: Sequence[_Sample]) -> None:
        if self.critic is None:
            for sample in samples:
                sample.advantages = torch.full_like(sample.old_logprobs, sample.advantage)
            return
        for sample in samples:
            rewards_T = torch.zeros_like(sample.old_logprobs)
            if self._reference is not None and self._options.kl_placement == "reward":
                rewards_T -= self._options.kl_coefficient * kl_estimates(
                    sample.old_logprobs, sample.reference_logprobs, self._options.kl_estimator
                )
            rewards_T[-1] += sample.advantage
            sample.advantages, sample.returns = generalized_advantages(
                rewards_T, sample.old_values, self._options.gamma, self._options.lam
            )
        if self._options.whiten_advantages:
            whitened = whiten(torch.cat([sample.advantages for sample in samples]))
            parts = whitened.split([sample.advantages.numel() for sample in samples])
            for sample, part in zip(samples, parts, strict=True):
                sample.advantages = part

    def _optimizer_step(self, mini_batch: Sequence[Sequence[_Sample]]) -> Metrics:
        tokens = _count(sample for batch in mini_batch for sample in batch)
        taught = _count(
            sample for batch in mini_batch if self._teaches(batch[0]) for sample in batch
        )
        totals: Metrics = {"policy_loss": 0.0, "clip_fraction": 0.0, "old_kl": 0.0}
        for micro_batch in mini_batch:
            for name, value in self._backward(micro_batch, tokens, taught).items():
                totals[name] = totals.get(name, 0.0) + value
        return totals | self._apply()

    def _backward(self, micro_batch: Sequence[_Sample], tokens: int, taught: int) -> Metrics:
        """Add this micro-batch's gradients; returns its share of the step's metrics.

        Args:
            micro_batch: episodes that all teach, or none of them.
            tokens: trainable tokens of the optimizer step.
            taught: those of them that belong to episodes that teach.
        """
        metrics: Metrics = {}
        if self._teaches(micro_batch[0]):
            metrics |= self._backward_policy(micro_batch, tokens, taught)
        if self.critic is not None:
            batch = self._batch(micro_batch)
            losses_A = value_losses(
                self._values(self.critic, batch),
                torch.cat([sample.old_values for sample in micro_batch]),
                torch.cat([sample.returns for sample in micro_batch]),
                self._options.value_clip,
            )
            loss = losses_A.sum() / tokens
            loss.backward()
            metrics["value_loss"] = float(loss.detach())
        return metrics

    def _backward_policy(self, samples: Sequence[_Sample], tokens: int, taught: int) -> Metrics:
        options = self._options
        logprobs_A, entropy_A = self._logprobs(self.searcher, self._batch(samples))
        old_A = torch.cat([sample.old_logprobs for sample in samples])
        advantages_A = torch.cat([sample.advantages for sample in samples])
        losses_A = policy_losses(
            logprobs_A, old_A, advantages_A, options.clip_low, options.clip_high
        )
        total = losses_A.sum()
        if options.entropy_coefficient > 0:
            total = total - options.entropy_coefficient * entropy_A.sum()
        if self._reference is not None and options.kl_placement == "loss":
            reference_A = torch.cat([sample.reference_logprobs for sample in samples])
            kl_A = kl_estimates(logprobs_A, reference_A, options.kl_estimator)
            total = total + options.kl_coefficient * kl_A.sum()
        loss = total / tokens
        loss.backward()
        with torch.no_grad():
            clipped = clipped_fraction(logprobs_A, old_A, options.clip_low, options.clip_high)
            return {
                "policy_loss": float(losses_A.sum()) / tokens,
                "clip_fraction": float(clipped) / taught,
                "old_kl": float(kl_estimates(old_A, logprobs_A, "k3").sum()) / taught,
            }

    def _teaches(self, sample: _Sample) -> bool:
        """Whether an episode's gradient can differ from zero; known before anything is computed."""
        options = self._options
        regularised = options.entropy_coefficient > 0 or (
            self._reference is not None and options.kl_placement == "loss"
        )
        return self.critic is not None or regularised or sample.advantage != 0

    def _apply(self) -> Metrics:
        """Take both optimizers' step, or neither; returns the norms of the gradients."""
        norms = {"grad_norm": self._clip(self.searcher)}
        optimizers = [self.optimizer]
        if self.critic is not None and self.critic_optimizer is not None:
            norms["critic_grad_norm"] = self._clip(self.critic)
            optimizers.append(self.critic_optimizer)
        finite = all(math.isfinite(norm) for norm in norms.values())
        for optimizer in optimizers:
            if finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not finite:
            raise SearchRLError(
                "a gradient is not finite; lower the learning rate or look at the last episodes"
            )
        return norms

    def _clip(self, module: torch.nn.Module) -> float:
        limit = self._options.max_grad_norm
        return float(torch.nn.utils.clip_grad_norm_(module.parameters(), limit))

    def _set_rates(self, step: int) -> None:
        options = self._options
        rate = options.learning_rate * _warmup(step, options.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.critic_optimizer is not None:
            rate = options.critic_learning_rate * _warmup(step, options.critic_warmup_steps)
            for group in self.critic_optimizer.param_groups:
                group["lr"] = rate

    def _adamw(self, module: torch.nn.Module) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            module.parameters(), weight_decay=self._options.weight_decay, fused=True
        )

    def _logprobs(
        self, model: PreTrainedModel, batch: TokenBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self._precision():
            return token_logprobs(model, batch, self._temperature)

    def _values(self, critic: Critic, batch: TokenBatch) -> torch.Tensor:
        with self._precision():
            values_A: torch.Tensor = critic(batch)
            return values_A

    def _precision(self) -> torch.autocast:
        device = self.searcher.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._options.autocast)

    def _batch(self, samples: Sequence[_Sample]) -> TokenBatch:
        return TokenBatch.of([sample.episode for sample in samples], self.searcher.device)


def _count(samples: Iterable[_Sample]) -> int:
    """Trainable tokens of some episodes."""
    return sum(sample.old_logprobs.numel() for sample in samples)


def _warmup(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / steps) if steps else 1.0
