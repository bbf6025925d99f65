"""One policy update from one step's groups of episodes, whatever the algorithm.

Every loss is a sum over trainable tokens with weights set for its whole optimizer step
(``averaging``), so neither micro-batches nor packing change a result. The old log-probabilities are
those of the weights that sampled, from the very pass the update makes or repeats, so the ratio is
exactly 1 until the first optimizer step.

A step of a single optimizer step needs no look back: its one pass gives old and new at once. Only
where the weights move between passes (``epochs`` or ``mini_batches`` above 1), or where tokens that
nobody sampled are learned from (``mask_retrieved = false``), are old log-probabilities and values
computed before.

Episodes whose advantages are known to be zero (``credit``) are not passed through at all. Where
nothing in an optimizer step teaches, the step is not taken: weights, moments and weight decay rest.
Nor is it taken where a gradient is not finite, which is counted.

Several processes (``parallel``) hand it the same groups. Each passes its share of the episodes
through the models; what credit is made from, gradients and metrics are sums over all of them.

Differs from the original s3 and Search-R1: they average per micro-batch, and let observation tokens
into GAE, whitening and the critic's loss. A KL term in the reward of a single-step update is of the
log-probabilities noted at sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from searchrl.agents.episode import EndReason, Episode
from searchrl.models.adapters import has_adapter
from searchrl.training.adamw import open_adamw, trained_parameters
from searchrl.training.averaging import token_weights
from searchrl.training.batch import TokenBatch, learned_mask
from searchrl.training.credit import Evidence, assign_credit, known_to_be_idle
from searchrl.training.importance import truncated_weights
from searchrl.training.kl_control import next_coefficient
from searchrl.training.losses import (
    clipped_fraction,
    kl_estimates,
    policy_losses,
    value_losses,
)
from searchrl.training.networks import Critic, Policy
from searchrl.training.options import LearningOptions
from searchrl.training.parallel.layout import Layout, Replicated
from searchrl.training.parallel.processes import total
from searchrl.training.parallel.tensors import whole
from searchrl.training.placement import Placement
from searchrl.training.recomputation import recompute_blocks
from searchrl.training.samples import MicroBatch, Sample, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Metrics = dict[str, float]
Model = TypeVar("Model", bound=torch.nn.Module)
Learned = TypeVar("Learned", Policy, Critic)


@dataclass(frozen=True, slots=True)
class Group:
    """The scored episodes of one question in one step; all rewards are there."""

    episodes: tuple[Episode, ...]

    @property
    def rewards(self) -> list[float]:
        """The reward of each episode."""
        values = [episode.reward.value for episode in self.episodes if episode.reward is not None]
        return [value for value in values if value is not None]


class Learner:
    """Holds what training changes: the searcher, its critic, and their optimizers.

    Args:
        searcher: the policy; trained in place.
        options: the algorithm and its numbers.
        temperature: the one episodes are sampled with.
        reference: frozen copy of the searcher as training began; needed for a KL term only.
        steps: how many there will be; rates that fall do so until the last of them.
        layout: how the models lie over the processes that train.

    Raises:
        ValueError: the options ask for a KL term and there is no reference.
    """

    def __init__(
        self,
        searcher: PreTrainedModel,
        options: LearningOptions,
        temperature: float,
        reference: PreTrainedModel | None = None,
        steps: int = 1,
        layout: Layout | None = None,
    ) -> None:
        if options.kl_coefficient > 0 and reference is None:
            raise ValueError("a KL term needs the reference searcher")
        self._layout = layout or Replicated()
        self._processes = self._layout.processes
        self._options = options
        self._temperature = temperature
        self._steps = steps
        # One after another, so that little is whole at a time where models are cut.
        self._reference = self._placed(Policy(reference)) if reference is not None else None
        self.critic = self._learned(Critic(searcher)) if options.algorithm == "ppo" else None
        self.searcher = searcher
        self._policy = self._learned(Policy(self._layout.trained(searcher)))
        self.kl_coefficient = options.kl_coefficient
        self.optimizer = self._adamw(self._policy)
        self.critic_optimizer = self._adamw(self.critic) if self.critic is not None else None
        # An adapter's critic and reference are the searcher's own weights, which never rest.
        home = "cpu" if options.offload and not has_adapter(searcher) else searcher.device
        self._reference_place = Placement(reference, torch.device(home), searcher.device)
        self._critic_place = Placement(self.critic, torch.device(home), searcher.device)

    def update(self, groups: Sequence[Group], step: int) -> Metrics:
        """Learn from one step's groups; ``step`` counts from 0 and sets the warm-up.

        Returns:
            Metrics. Those of tokens are means over the episodes that teach, and are left out
            where none does.
        """
        grouped = self._samples(groups)
        samples = [sample for group in grouped for sample in group]
        size = math.ceil(len(samples) / self._options.mini_batches)
        mini_batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        plan = [self._pack([s for s in batch if s.teaches]) for batch in mini_batches]
        self._set_rates(step)
        teaching = [batch for batches in plan for batch in batches]
        idle = self._pack_idle(samples)
        self._note_reference([*teaching, *idle])
        with self._layout.updating(self._policy, self.searcher), self._critic_place.at_work():
            totals = self._look_back(grouped, teaching, idle)
            for _ in range(self._options.epochs):
                for mini_batch, micro_batches in zip(mini_batches, plan, strict=True):
                    for name, value in self._optimizer_step(mini_batch, micro_batches).items():
                        totals[name] = totals.get(name, 0.0) + value
        skipped = totals.pop("skipped_updates")
        steps = self._options.epochs * len(plan)
        metrics = {name: value / steps for name, value in totals.items()}
        metrics["trainable_tokens"] = float(sum(sample.tokens for sample in samples))
        return metrics | {"skipped_updates": skipped} | self._control(metrics, len(samples))

    def adopt_searcher(self) -> None:
        """Go on from the searcher's weights, which have been loaded from a checkpoint."""
        self._layout.adopt(self._policy, self.searcher)

    @property
    def _single(self) -> bool:
        """Whether an update is one optimizer step, whose pass is the look back as well."""
        options = self._options
        return options.epochs == 1 and options.mini_batches == 1 and options.mask_retrieved

    def _control(self, metrics: Metrics, episodes: int) -> Metrics:
        """Note the KL term's weight, and adapt it where it has a target."""
        if self._reference is None:
            return {}
        used, options = self.kl_coefficient, self._options
        divergence = metrics.get("reference_kl")
        if options.kl_target is not None and divergence is not None:
            target, horizon = options.kl_target, options.kl_horizon
            self.kl_coefficient = next_coefficient(used, divergence, target, episodes, horizon)
        return {"kl_coefficient": used}

    def _samples(self, groups: Sequence[Group]) -> list[list[Sample]]:
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

    def _sample(self, episode: Episode, reward: float, silent: bool) -> Sample:
        options = self._options
        counted = not (options.mask_truncated and episode.end is EndReason.TRUNCATED)
        regularised = options.entropy_coefficient > 0 or (
            self._reference is not None and options.kl_placement == "loss"
        )
        tokens = sum(learned_mask(episode, options.mask_retrieved))
        return Sample(episode, reward, tokens, counted, counted and (regularised or not silent))

    def _pack(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        """This process's micro-batches, packed once and for all passes of the step."""
        options, device = self._options, self.searcher.device
        budget, masked = options.tokens_per_micro_batch, options.mask_retrieved
        return pack(samples, budget, device, masked, self._layout)

    def _pack_idle(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        """Those left out of the loss that are still part of a group's baseline."""
        if self.critic is None and self._reference is None:
            return []
        return self._pack([sample for sample in samples if not sample.teaches])

    @torch.no_grad()
    def _note_reference(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Log-probabilities of the reference, ahead of all else: then it may rest again."""
        if self._reference is None:
            return
        with self._reference_place.at_work():
            for micro_batch in micro_batches:
                reference_A, _ = self._logprobs(self._reference, micro_batch.batch)
                for sample, part in micro_batch.split(reference_A):
                    sample.reference_logprobs = part

    def _look_back(
        self,
        grouped: Sequence[Sequence[Sample]],
        micro_batches: Sequence[MicroBatch],
        idle: Sequence[MicroBatch],
    ) -> Metrics:
        """What is known before the policy's own passes: its old ones, values, and all credit.

        The critic of a single-step update learns in the same pass that gives its old values.
        """
        samples = [sample for group in grouped for sample in group]
        counted = sum(sample.tokens for sample in samples if sample.counted)
        totals: Metrics = {} if self.critic is None else {"value_loss": 0.0}
        for micro_batch in micro_batches:
            self._note(micro_batch)
            if self.critic is not None and self._single:
                values_A = self._values(self.critic, micro_batch.batch)
                self._note_values(micro_batch, values_A.detach())
                self._set_credit([micro_batch.samples])
                totals["value_loss"] += self._backward_values(values_A, micro_batch, counted)
        for micro_batch in idle:
            self._note(micro_batch, with_values=True)
        self._exchange(samples)
        self._set_credit(grouped)
        return total(self._processes, totals)

    def _exchange(self, samples: Sequence[Sample]) -> None:
        """Learn of every sample what the process knows that passed it through the models.

        Credit is made from all of them: a whitening is over the whole step.
        """
        if self._processes.size == 1:
            return
        device, lengths = self.searcher.device, [sample.tokens for sample in samples]
        names = ["reference_logprobs"] if self._reference is not None else []
        names += ["old_values"] if self.critic is not None else []
        names += [] if self._single else ["old_logprobs"]
        for name in names:
            known = [getattr(sample, name) for sample in samples]
            rows = [
                torch.zeros(length, device=device) if row is None else row
                for row, length in zip(known, lengths, strict=True)
            ]
            vector = torch.cat(rows)
            self._processes.add(vector)
            for sample, row in zip(samples, vector.split(lengths), strict=True):
                setattr(sample, name, row)

    @torch.no_grad()
    def _note(self, micro_batch: MicroBatch, with_values: bool = False) -> None:
        """What must be known before the weights move."""
        batch = micro_batch.batch
        if not self._single:
            old_A, _ = self._logprobs(self._policy, batch)
            for sample, part in micro_batch.split(old_A):
                sample.old_logprobs = part
        if self.critic is not None and (with_values or not self._single):
            self._note_values(micro_batch, self._values(self.critic, batch))

    def _note_values(self, micro_batch: MicroBatch, values_A: torch.Tensor) -> None:
        for sample, part in micro_batch.split(values_A):
            sample.old_values = part

    def _set_credit(self, grouped: Sequence[Sequence[Sample]]) -> None:
        evidence = [[self._evidence(sample) for sample in group] for group in grouped]
        credited = assign_credit(evidence, self._options, self.kl_coefficient)
        for group, credits in zip(grouped, credited, strict=True):
            for sample, credit in zip(group, credits, strict=True):
                sample.advantages, sample.returns = credit.advantages_T, credit.returns_T

    def _evidence(self, sample: Sample) -> Evidence:
        old_T = sample.old_logprobs
        if old_T is None:
            noted = sample.episode.logprobs
            old_T = torch.tensor(noted, dtype=torch.float32, device=self.searcher.device)
        return Evidence(
            sample.reward, sample.counted, old_T, sample.reference_logprobs, sample.old_values
        )

    def _optimizer_step(
        self, samples: Sequence[Sample], micro_batches: Sequence[MicroBatch]
    ) -> Metrics:
        """One step on a mini-batch: all its samples, and those that teach as they are packed."""
        options = self._options
        lengths = [sample.tokens if sample.counted else 0 for sample in samples]
        weights = token_weights(lengths, options.loss_average, options.loss_constant)
        for sample, weight in zip(samples, weights, strict=True):
            sample.weight = weight
        taught = sum(sample.tokens for sample in samples if sample.teaches)
        totals: Metrics = {"policy_loss": 0.0, "clip_fraction": 0.0, "old_kl": 0.0}
        for micro_batch in micro_batches:
            found = self._backward_policy(micro_batch, taught)
            if self.critic is not None and not self._single:
                values_A = self._values(self.critic, micro_batch.batch)
                found["value_loss"] = self._backward_values(values_A, micro_batch, sum(lengths))
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value
        return total(self._processes, totals) | self._apply()

    def _backward_values(
        self, values_A: torch.Tensor, micro_batch: MicroBatch, tokens: int
    ) -> float:
        """Add the critic's gradients; returns this micro-batch's share of its loss."""
        if not micro_batch.samples:
            (values_A.sum() * 0.0).backward()
            return 0.0
        old = [sample.old_values for sample in micro_batch.samples if sample.old_values is not None]
        returns_A = torch.cat([sample.returns for sample in micro_batch.samples])
        losses_A = value_losses(values_A, torch.cat(old), returns_A, self._options.value_clip)
        loss = losses_A.sum() / tokens
        loss.backward()
        return float(loss.detach())

    def _backward_policy(self, micro_batch: MicroBatch, taught: int) -> Metrics:
        """Add the policy's gradients; returns this micro-batch's share of the step's metrics.

        Args:
            micro_batch: episodes that teach.
            taught: trainable tokens of all that teach in the optimizer step.
        """
        options, samples, batch = self._options, micro_batch.samples, micro_batch.batch
        logprobs_A, entropy_A = self._logprobs(self._policy, batch)
        if not samples:
            (logprobs_A.sum() * 0.0).backward()
            return {}
        old = [sample.old_logprobs for sample in samples if sample.old_logprobs is not None]
        old_A = torch.cat(old) if old else logprobs_A.detach()
        sampled_A = torch.where(batch.was_sampled_A, batch.sampled_logprobs_A, old_A)
        advantages_A = torch.cat([sample.advantages for sample in samples])
        weights_A = torch.cat([torch.full_like(s.advantages, s.weight) for s in samples])
        losses_A = policy_losses(
            logprobs_A, old_A, advantages_A, options.clip_low, options.clip_high
        )
        metrics: Metrics = {}
        if (cap := options.importance_cap) is not None:
            importance_A = truncated_weights(old_A, sampled_A, cap)
            losses_A = losses_A * importance_A
            metrics["importance_capped"] = float((importance_A >= cap).sum()) / taught
        total_A = losses_A
        if options.entropy_coefficient > 0:
            total_A = total_A - options.entropy_coefficient * entropy_A
        divergences = {"old_kl": (old_A, logprobs_A), "mismatch_kl": (sampled_A, old_A)}
        references = [s.reference_logprobs for s in samples if s.reference_logprobs is not None]
        if references:
            reference_A = torch.cat(references)
            divergences["reference_kl"] = (old_A, reference_A)
            if options.kl_placement == "loss":
                kl_A = kl_estimates(logprobs_A, reference_A, options.kl_estimator)
                total_A = total_A + self.kl_coefficient * kl_A
        (total_A * weights_A).sum().backward()
        with torch.no_grad():
            clipped = clipped_fraction(logprobs_A, old_A, options.clip_low, options.clip_high)
            metrics["policy_loss"] = float((losses_A * weights_A).sum())
            metrics["clip_fraction"] = float(clipped) / taught
            metrics["entropy"] = float(entropy_A.sum()) / taught
            for name, (one_A, other_A) in divergences.items():
                metrics[name] = float(kl_estimates(one_A, other_A, "k3").sum()) / taught
        return metrics

    def _apply(self) -> Metrics:
        """Take both optimizers' step, or neither; returns the norms of the gradients."""
        norms = {"grad_norm": self._clip(self._policy)}
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
        """Complete the gradients and scale them down; returns the norm they had."""
        self._layout.add_gradients(module)
        limit = self._options.max_grad_norm
        return float(whole(torch.nn.utils.clip_grad_norm_(module.parameters(), limit)))

    def _set_rates(self, step: int) -> None:
        options = self._options
        rates = [(self.optimizer, options.learning_rate, options.warmup_steps)]
        if self.critic_optimizer is not None:
            critic = (options.critic_learning_rate, options.critic_warmup_steps)
            rates.append((self.critic_optimizer, *critic))
        for optimizer, peak, warmup_steps in rates:
            share = _share_of_rate(step, warmup_steps, self._steps, options.final_rate)
            for group in optimizer.param_groups:
                group["lr"] = peak * share

    def _adamw(self, module: torch.nn.Module) -> torch.optim.AdamW:
        groups = [{"params": trained_parameters(module)}]
        decay = self._options.weight_decay
        return open_adamw(groups, self._options.offload, weight_decay=decay)

    def _learned(self, module: Learned) -> Learned:
        """What gradients flow through, laid out."""
        if self._options.gradient_checkpointing:
            recompute_blocks(module.trunk)
        return self._placed(module)

    def _placed(self, module: Model) -> Model:
        self._layout.place(module)
        return module

    def _logprobs(self, policy: Policy, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with self._precision():
            checkpointed = self._options.gradient_checkpointing
            found: tuple[torch.Tensor, torch.Tensor] = policy(
                batch, self._temperature, checkpointed
            )
            return found

    def _values(self, critic: Critic, batch: TokenBatch) -> torch.Tensor:
        with self._precision():
            values_A: torch.Tensor = critic(batch)
            return values_A

    def _precision(self) -> torch.autocast:
        device = self.searcher.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._options.autocast)


def _share_of_rate(step: int, warmup_steps: int, steps: int, final: float) -> float:
    """Up to 1 over the warm-up, then down to ``final`` at the last of ``steps``; both linear."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return 1 - (1 - final) * min(1.0, done)
