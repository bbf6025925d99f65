"""One policy update from one step's groups of episodes: PPO with a critic, or GRPO.

Order of a step: values and old and reference log-probabilities with the weights that sampled, then
advantages, then one or more optimizer steps. Every loss is a sum over trainable tokens divided by
the number of trainable tokens of its whole optimizer step, so neither micro-batches nor padding
change a result. The old log-probabilities come from the very passes the update repeats, so the
ratio is exactly 1 until the first optimizer step.

Differs from the original s3 and Search-R1: they average per micro-batch, and let observation tokens
into GAE, whitening and the critic's loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """

    def __init__(
        self,
        searcher: PreTrainedModel,
        options: LearningOptions,
        temperature: float,
        reference: PreTrainedModel | None = None,
    ) -> None:
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
            SearchRLError: a gradient is not finite; the weights are as they were.
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
            lengths = [len(sample.episode.token_ids) for sample in mini_batch]
            budget = self._options.tokens_per_micro_batch
            plan.append(
                [[mini_batch[i] for i in batch] for batch in micro_batches(lengths, budget)]
            )
        return plan

    @torch.no_grad()
    def _look_back(
        self, samples: Sequence[_Sample], plan: Sequence[Sequence[Sequence[_Sample]]]
    ) -> Metrics:
        """Old and reference log-probabilities and old values, with the weights that sampled."""
        mismatch, reference_kl, tokens = 0.0, 0.0, 0
        for micro_batch in (batch for mini_batch in plan for batch in mini_batch):
            batch = self._batch(micro_batch)
            lengths = list(batch.lengths_B)
            old_A, _ = token_logprobs(self.searcher, batch, self._temperature)
            mismatch += float(kl_estimates(batch.sampled_logprobs_A, old_A, "k3").sum())
            tokens += old_A.numel()
            for sample, part in zip(micro_batch, old_A.split(lengths), strict=True):
                sample.old_logprobs = part
            if self._reference is not None:
                reference_A, _ = token_logprobs(self._reference, batch, self._temperature)
                reference_kl += float(kl_estimates(old_A, reference_A, "k3").sum())
                for sample, part in zip(micro_batch, reference_A.split(lengths), strict=True):
                    sample.reference_logprobs = part
            if self.critic is not None:
                for sample, part in zip(
                    micro_batch, self.critic(batch).split(lengths), strict=True
                ):
                    sample.old_values = part
        metrics = {"mismatch_kl": mismatch / tokens, "trainable_tokens": float(tokens)}
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
        tokens = sum(sample.old_logprobs.numel() for batch in mini_batch for sample in batch)
        totals: Metrics = {}
        for micro_batch in mini_batch:
            for name, value in self._backward(micro_batch, tokens).items():
                totals[name] = totals.get(name, 0.0) + value
        totals["grad_norm"] = self._apply(self.searcher, self.optimizer)
        if self.critic is not None and self.critic_optimizer is not None:
            totals["critic_grad_norm"] = self._apply(self.critic, self.critic_optimizer)
        return totals

    def _backward(self, micro_batch: Sequence[_Sample], tokens: int) -> Metrics:
        """Add this micro-batch's gradients; returns its share of the step's metrics."""
        metrics: Metrics = {}
        teaching = [sample for sample in micro_batch if self._teaches(sample)]
        if teaching:
            metrics |= self._backward_policy(teaching, tokens)
        if self.critic is not None:
            batch = self._batch(micro_batch)
            losses_A = value_losses(
                self.critic(batch),
                torch.cat([sample.old_values for sample in micro_batch]),
                torch.cat([sample.returns for sample in micro_batch]),
                self._options.value_clip,
            )
            loss = losses_A.sum() / tokens
            loss.backward()
            metrics["value_loss"] = float(loss.detach())
        return metrics

    def _backward_policy(self, samples: Sequence[_Sample], tokens: int) -> Metrics:
        options = self._options
        logprobs_A, entropy_A = token_logprobs(
            self.searcher, self._batch(samples), self._temperature
        )
        old_A = torch.cat([sample.old_logprobs for sample in samples])
        advantages_A = torch.cat([sample.advantages for sample in samples])
        losses_A = policy_losses(
            logprobs_A, old_A, advantages_A, options.clip_low, options.clip_high
        )
        total = losses_A.sum() - options.entropy_coefficient * entropy_A.sum()
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
                "entropy": float(entropy_A.sum()) / tokens,
                "clip_fraction": float(clipped) / tokens,
                "old_kl": float(kl_estimates(old_A, logprobs_A, "k3").sum()) / tokens,
            }

    def _teaches(self, sample: _Sample) -> bool:
        """Whether an episode's gradient can differ from zero; it is skipped if not."""
        options = self._options
        constant = options.entropy_coefficient == 0 and (
            self._reference is None or options.kl_placement == "reward"
        )
        return not constant or bool(sample.advantages.any())

    def _apply(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), self._options.max_grad_norm)
        if not torch.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)
            raise SearchRLError(
                "a gradient is not finite; lower the learning rate or look at the last episodes"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm)

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

    def _batch(self, samples: Sequence[_Sample]) -> TokenBatch:
        return TokenBatch.of([sample.episode for sample in samples], self.searcher.device)


def _warmup(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / steps) if steps else 1.0
