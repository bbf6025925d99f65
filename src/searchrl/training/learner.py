"""One policy update from one step's groups of episodes, whatever the algorithm.

Order of a step: values and old and reference log-probabilities with the weights that sampled, then
advantages (``credit``), then one or more optimizer steps. Every loss is a sum over trainable tokens
with weights set for its whole optimizer step (``averaging``), so neither micro-batches nor padding
change a result. The old log-probabilities come from the very passes the update repeats, so the
ratio is exactly 1 until the first optimizer step.

Episodes whose advantages are known to be zero are not passed through again. Where nothing in an
optimizer step teaches, the step is not taken: weights, moments and weight decay rest. Nor is it
taken where a gradient is not finite, which is counted.

Differs from the original s3 and Search-R1: they average per micro-batch, and let observation tokens
into GAE, whitening and the critic's loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from searchrl.agents.episode import EndReason, Episode
from searchrl.training.averaging import token_weights
from searchrl.training.batch import TokenBatch, micro_batches
from searchrl.training.credit import Evidence, assign_credit, known_to_be_idle
from searchrl.training.importance import truncated_weights
from searchrl.training.kl_control import next_coefficient
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
    reward: float
    counted: bool
    """Whether it takes part in the loss."""
    teaches: bool
    """Whether its gradient can differ from zero; known before anything is computed."""
    weight: float = 0.0
    """Of each of its tokens in the loss of the policy."""
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    old_logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    importance: torch.Tensor = field(default_factory=lambda: torch.empty(0))
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
        self.kl_coefficient = options.kl_coefficient
        self.optimizer = self._adamw(searcher)
        self.critic_optimizer = self._adamw(self.critic) if self.critic is not None else None

    def update(self, groups: Sequence[Group], step: int) -> Metrics:
        """Learn from one step's groups; ``step`` counts from 0 and sets the warm-up."""
        grouped = self._samples(groups)
        samples = [sample for group in grouped for sample in group]
        plan = self._plan(samples)
        metrics = self._look_back(samples, plan)
        self._set_advantages(grouped)
        self._set_rates(step)
        totals: Metrics = {}
        for _ in range(self._options.epochs):
            for mini_batch in plan:
                for name, value in self._optimizer_step(mini_batch).items():
                    totals[name] = totals.get(name, 0.0) + value
        steps = self._options.epochs * len(plan)
        skipped = totals.pop("skipped_updates")
        metrics |= {name: value / steps for name, value in totals.items()}
        return metrics | {"skipped_updates": skipped} | self._control(metrics, len(samples))

    def _control(self, metrics: Metrics, episodes: int) -> Metrics:
        """Note the KL term's weight, and adapt it where it has a target."""
        if self._reference is None:
            return {}
        used, options = self.kl_coefficient, self._options
        if options.kl_target is not None:
            self.kl_coefficient = next_coefficient(
                used, metrics["reference_kl"], options.kl_target, episodes, options.kl_horizon
            )
        return {"kl_coefficient": used}

    def _samples(self, groups: Sequence[Group]) -> list[list[_Sample]]:
        idle = known_to_be_idle([group.rewards for group in groups], self._options)
        return [
            [
                self._sample(episode, reward, silent)
                for episode, reward, silent in zip(
                    group.episodes, group.rewards, silences, strict=True
                )
            ]
            for group, silences in zip(groups, idle, strict=True)
        ]

    def _sample(self, episode: Episode, reward: float, silent: bool) -> _Sample:
        options = self._options
        counted = not (options.mask_truncated and episode.end is EndReason.TRUNCATED)
        regularised = options.entropy_coefficient > 0 or (
            self._reference is not None and options.kl_placement == "loss"
        )
        return _Sample(episode, reward, counted, counted and (regularised or not silent))

    def _plan(self, samples: Sequence[_Sample]) -> list[list[list[_Sample]]]:
        """Mini-batches of micro-batches, fixed for the whole step."""
        size = math.ceil(len(samples) / self._options.mini_batches)
        plan: list[list[list[_Sample]]] = []
        for start in range(0, len(samples), size):
            mini_batch = samples[start : start + size]
            # Apart, so that a pass of the update holds exactly what its pass of looking back held.
            teaching = [sample for sample in mini_batch if sample.teaches]
            idle = [sample for sample in mini_batch if not sample.teaches]
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
        mismatch, entropy, reference_kl, tokens, capped = 0.0, 0.0, 0.0, 0, 0
        for micro_batch in (batch for mini_batch in plan for batch in mini_batch):
            batch = self._batch(micro_batch)
            lengths = list(batch.lengths_B)
            old_A, entropy_A = self._logprobs(self.searcher, batch)
            entropy += float(entropy_A.sum())
            mismatch += float(kl_estimates(batch.sampled_logprobs_A, old_A, "k3").sum())
            tokens += old_A.numel()
            for sample, part in zip(micro_batch, old_A.split(lengths), strict=True):
                sample.old_logprobs = part
            if (cap := self._options.importance_cap) is not None:
                weights_A = truncated_weights(old_A, batch.sampled_logprobs_A, cap)
                capped += int((weights_A >= cap).sum())
                for sample, part in zip(micro_batch, weights_A.split(lengths), strict=True):
                    sample.importance = part
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
        if self._options.importance_cap is not None:
            metrics["importance_capped"] = capped / tokens
        return metrics

    def _set_advantages(self, grouped: Sequence[Sequence[_Sample]]) -> None:
        evidence = [[self._evidence(sample) for sample in group] for group in grouped]
        credited = assign_credit(evidence, self._options, self.kl_coefficient)
        for group, credits in zip(grouped, credited, strict=True):
            for sample, credit in zip(group, credits, strict=True):
                sample.advantages, sample.returns = credit.advantages_T, credit.returns_T

    def _evidence(self, sample: _Sample) -> Evidence:
        return Evidence(
            sample.reward,
            sample.counted,
            sample.old_logprobs,
            sample.reference_logprobs if self._reference is not None else None,
            sample.old_values if self.critic is not None else None,
        )

    def _optimizer_step(self, mini_batch: Sequence[Sequence[_Sample]]) -> Metrics:
        samples = [sample for batch in mini_batch for sample in batch]
        lengths = [sample.old_logprobs.numel() if sample.counted else 0 for sample in samples]
        options = self._options
        weights = token_weights(lengths, options.loss_average, options.loss_constant)
        for sample, weight in zip(samples, weights, strict=True):
            sample.weight = weight
        taught = sum(sample.old_logprobs.numel() for sample in samples if sample.teaches)
        totals: Metrics = {"policy_loss": 0.0, "clip_fraction": 0.0, "old_kl": 0.0}
        if self.critic is not None:
            totals["value_loss"] = 0.0
        for micro_batch in mini_batch:
            if micro_batch[0].teaches:
                for name, value in self._backward(micro_batch, sum(lengths), taught).items():
                    totals[name] = totals.get(name, 0.0) + value
        return totals | self._apply()

    def _backward(self, micro_batch: Sequence[_Sample], tokens: int, taught: int) -> Metrics:
        """Add this micro-batch's gradients; returns its share of the step's metrics.

        Args:
            micro_batch: episodes that all teach.
            tokens: trainable tokens of the optimizer step that take part in the loss.
            taught: those of them that belong to episodes that teach.
        """
        metrics = self._backward_policy(micro_batch, taught)
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

    def _backward_policy(self, samples: Sequence[_Sample], taught: int) -> Metrics:
        options = self._options
        logprobs_A, entropy_A = self._logprobs(self.searcher, self._batch(samples))
        old_A = torch.cat([sample.old_logprobs for sample in samples])
        advantages_A = torch.cat([sample.advantages for sample in samples])
        weights_A = torch.cat([torch.full_like(s.old_logprobs, s.weight) for s in samples])
        losses_A = policy_losses(
            logprobs_A, old_A, advantages_A, options.clip_low, options.clip_high
        )
        if options.importance_cap is not None:
            losses_A = losses_A * torch.cat([sample.importance for sample in samples])
        total_A = losses_A
        if options.entropy_coefficient > 0:
            total_A = total_A - options.entropy_coefficient * entropy_A
        if self._reference is not None and options.kl_placement == "loss":
            reference_A = torch.cat([sample.reference_logprobs for sample in samples])
            kl_A = kl_estimates(logprobs_A, reference_A, options.kl_estimator)
            total_A = total_A + self.kl_coefficient * kl_A
        (total_A * weights_A).sum().backward()
        with torch.no_grad():
            clipped = clipped_fraction(logprobs_A, old_A, options.clip_low, options.clip_high)
            return {
                "policy_loss": float((losses_A * weights_A).sum()),
                "clip_fraction": float(clipped) / taught,
                "old_kl": float(kl_estimates(old_A, logprobs_A, "k3").sum()) / taught,
            }

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
        return norms | {"skipped_updates": float(not finite)}

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


def _warmup(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / steps) if steps else 1.0
