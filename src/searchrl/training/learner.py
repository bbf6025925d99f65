"""One policy update from one step's groups of episodes: PPO with a critic, or GRPO.

Every loss is a sum over trainable tokens divided by the number of trainable tokens of its whole
optimizer step, so neither micro-batches nor padding change a result. The old log-probabilities are
those of the weights that sampled, from the very pass the update makes or repeats, so the ratio is
exactly 1 until the first optimizer step.

A step of a single optimizer step needs no look back: its one pass gives old and new at once. Only
where the weights move between passes (``epochs`` or ``mini_batches`` above 1) are old
log-probabilities and values computed before.

Episodes of a GRPO group with equal rewards teach nothing and are not passed through at all. Where
nothing in an optimizer step teaches, the step is not taken: weights, moments and weight decay rest.

Differs from the original s3 and Search-R1: they average per micro-batch, and let observation tokens
into GAE, whitening and the critic's loss. A KL term in the reward of a single-step update is of the
log-probabilities noted at sampling.
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
from searchrl.training.batch import TokenBatch, tree_batches
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
    """One episode on its way through an update; vectors hold its trainable tokens only.

    ``old_logprobs`` and ``old_values`` stay unset where the update's own pass gives them.
    """

    episode: Episode
    advantage: float
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    old_logprobs: torch.Tensor | None = None
    reference_logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    old_values: torch.Tensor | None = None
    returns: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, slots=True)
class _MicroBatch:
    """Episodes that are passed through a model together."""

    samples: tuple[_Sample, ...]
    batch: TokenBatch

    def split(self, values_A: torch.Tensor) -> list[tuple[_Sample, torch.Tensor]]:
        """Each episode with its share of a vector over trainable tokens."""
        parts = values_A.split(list(self.batch.lengths_B))
        return list(zip(self.samples, parts, strict=True))


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

        Returns:
            Metrics. Those of tokens are means over the episodes that teach, and are left out
            where none does.

        Raises:
            SearchRLError: a gradient is not finite; the optimizer step it belongs to is not taken.
        """
        mini_batches = self._mini_batches(self._samples(groups))
        plan = [self._micro_batches(samples) for samples in mini_batches]
        tokens = [_trainable(samples) for samples in mini_batches]
        metrics: Metrics = {"trainable_tokens": float(sum(tokens))}
        everything = [micro_batch for micro_batches in plan for micro_batch in micro_batches]
        self._set_rates(step)
        self._set_reference(everything)
        if self._single:
            metrics |= self._learn_values(everything, tokens[0])
        else:
            self._look_back(everything)
            self._set_advantages(everything)
        totals: Metrics = {}
        for _ in range(self._options.epochs):
            for micro_batches, count in zip(plan, tokens, strict=True):
                for name, value in self._optimizer_step(micro_batches, count).items():
                    totals[name] = totals.get(name, 0.0) + value
        steps = self._options.epochs * len(plan)
        return metrics | {name: value / steps for name, value in totals.items()}

    @property
    def _single(self) -> bool:
        """Whether an update is one optimizer step, whose pass is the look back as well."""
        return self._options.epochs == 1 and self._options.mini_batches == 1

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

    def _mini_batches(self, samples: Sequence[_Sample]) -> list[Sequence[_Sample]]:
        size = math.ceil(len(samples) / self._options.mini_batches)
        return [samples[start : start + size] for start in range(0, len(samples), size)]

    def _micro_batches(self, samples: Sequence[_Sample]) -> list[_MicroBatch]:
        """What teaches in a mini-batch, packed once and for all passes of the step."""
        teaching = [sample for sample in samples if self._teaches(sample)]
        sequences = [sample.episode.token_ids for sample in teaching]
        made: list[_MicroBatch] = []
        for indices in tree_batches(sequences, self._options.tokens_per_micro_batch):
            chosen = tuple(teaching[index] for index in indices)
            episodes = [sample.episode for sample in chosen]
            made.append(_MicroBatch(chosen, TokenBatch.of(episodes, self.searcher.device)))
        return made

    @torch.no_grad()
    def _set_reference(self, micro_batches: Sequence[_MicroBatch]) -> None:
        """Log-probabilities of the reference, where there is one."""
        if self._reference is None:
            return
        for micro_batch in micro_batches:
            reference_A, _ = self._logprobs(self._reference, micro_batch.batch)
            for sample, part in micro_batch.split(reference_A):
                sample.reference_logprobs = part

    @torch.no_grad()
    def _look_back(self, micro_batches: Sequence[_MicroBatch]) -> None:
        """Old log-probabilities and values, before the weights move."""
        for micro_batch in micro_batches:
            logprobs_A, _ = self._logprobs(self.searcher, micro_batch.batch)
            for sample, part in micro_batch.split(logprobs_A):
                sample.old_logprobs = part
            if self.critic is not None:
                values_A = self._values(self.critic, micro_batch.batch)
                for sample, part in micro_batch.split(values_A):
                    sample.old_values = part

    def _learn_values(self, micro_batches: Sequence[_MicroBatch], tokens: int) -> Metrics:
        """The critic's gradients and everyone's advantages, from one pass of the critic."""
        loss = 0.0
        for micro_batch in micro_batches:
            if self.critic is None:
                break
            values_A = self._values(self.critic, micro_batch.batch)
            for sample, part in micro_batch.split(values_A.detach()):
                sample.old_values = part
            self._set_returns(micro_batch)
            loss += self._backward_values(values_A, micro_batch, tokens)
        self._whiten(micro_batches)
        return {"value_loss": loss} if self.critic is not None else {}

    def _set_advantages(self, micro_batches: Sequence[_MicroBatch]) -> None:
        for micro_batch in micro_batches:
            self._set_returns(micro_batch)
        self._whiten(micro_batches)

    def _set_returns(self, micro_batch: _MicroBatch) -> None:
        """Advantages and returns of PPO."""
        options = self._options
        for sample, sampled_T in micro_batch.split(micro_batch.batch.sampled_logprobs_A):
            if sample.old_values is None:
                continue
            rewards_T = torch.zeros_like(sampled_T)
            if self._reference is not None and options.kl_placement == "reward":
                old_T = sampled_T if sample.old_logprobs is None else sample.old_logprobs
                rewards_T -= options.kl_coefficient * kl_estimates(
                    old_T, sample.reference_logprobs, options.kl_estimator
                )
            rewards_T[-1] += sample.advantage
            sample.advantages, sample.returns = generalized_advantages(
                rewards_T, sample.old_values, options.gamma, options.lam
            )

    def _whiten(self, micro_batches: Sequence[_MicroBatch]) -> None:
        """The last word on advantages: GRPO's spread over the tokens, PPO's whitened."""
        samples = [sample for micro_batch in micro_batches for sample in micro_batch.samples]
        if self.critic is None:
            for micro_batch in micro_batches:
                for sample, sampled_T in micro_batch.split(micro_batch.batch.sampled_logprobs_A):
                    sample.advantages = torch.full_like(sampled_T, sample.advantage)
        elif self._options.whiten_advantages:
            whitened = whiten(torch.cat([sample.advantages for sample in samples]))
            parts = whitened.split([sample.advantages.numel() for sample in samples])
            for sample, part in zip(samples, parts, strict=True):
                sample.advantages = part

    def _optimizer_step(self, micro_batches: Sequence[_MicroBatch], tokens: int) -> Metrics:
        """One step on a mini-batch of ``tokens`` trainable tokens, those that teach or not."""
        taught = _trainable([s for micro_batch in micro_batches for s in micro_batch.samples])
        totals: Metrics = {"policy_loss": 0.0, "clip_fraction": 0.0, "old_kl": 0.0}
        for micro_batch in micro_batches:
            found = self._backward_policy(micro_batch, tokens, taught)
            if self.critic is not None and not self._single:
                values_A = self._values(self.critic, micro_batch.batch)
                found["value_loss"] = self._backward_values(values_A, micro_batch, tokens)
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals | self._apply()

    def _backward_values(
        self, values_A: torch.Tensor, micro_batch: _MicroBatch, tokens: int
    ) -> float:
        """Add the critic's gradients; returns this micro-batch's share of its loss."""
        old = [sample.old_values for sample in micro_batch.samples if sample.old_values is not None]
        returns_A = torch.cat([sample.returns for sample in micro_batch.samples])
        losses_A = value_losses(values_A, torch.cat(old), returns_A, self._options.value_clip)
        loss = losses_A.sum() / tokens
        loss.backward()
        return float(loss.detach())

    def _backward_policy(self, micro_batch: _MicroBatch, tokens: int, taught: int) -> Metrics:
        """Add the policy's gradients; returns this micro-batch's share of the step's metrics.

        Args:
            micro_batch: episodes that teach.
            tokens: trainable tokens of the optimizer step.
            taught: those of them that belong to episodes that teach.
        """
        options, samples = self._options, micro_batch.samples
        logprobs_A, entropy_A = self._logprobs(self.searcher, micro_batch.batch)
        old = [sample.old_logprobs for sample in samples if sample.old_logprobs is not None]
        old_A = torch.cat(old) if old else logprobs_A.detach()
        advantages_A = torch.cat([sample.advantages for sample in samples])
        losses_A = policy_losses(
            logprobs_A, old_A, advantages_A, options.clip_low, options.clip_high
        )
        total = losses_A.sum()
        if options.entropy_coefficient > 0:
            total = total - options.entropy_coefficient * entropy_A.sum()
        divergences = {
            "old_kl": (old_A, logprobs_A),
            "mismatch_kl": (micro_batch.batch.sampled_logprobs_A, old_A),
        }
        if self._reference is not None:
            reference_A = torch.cat([sample.reference_logprobs for sample in samples])
            divergences["reference_kl"] = (old_A, reference_A)
            if options.kl_placement == "loss":
                kl_A = kl_estimates(logprobs_A, reference_A, options.kl_estimator)
                total = total + options.kl_coefficient * kl_A.sum()
        (total / tokens).backward()
        with torch.no_grad():
            clipped = clipped_fraction(logprobs_A, old_A, options.clip_low, options.clip_high)
            metrics = {
                "policy_loss": float(losses_A.sum()) / tokens,
                "clip_fraction": float(clipped) / taught,
                "entropy": float(entropy_A.sum()) / taught,
            }
            for name, (one_A, other_A) in divergences.items():
                metrics[name] = float(kl_estimates(one_A, other_A, "k3").sum()) / taught
        return metrics

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


def _trainable(samples: Iterable[_Sample]) -> int:
    """Trainable tokens of some episodes."""
    return sum(sum(sample.episode.trainable_mask) for sample in samples)


def _warmup(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / steps) if steps else 1.0
