"""Supervised next-token training on weighted tokens.

The one trainer behind supervised fine-tuning and behind the tiny models' lessons. A token's loss
counts with its weight and the sum is divided by the total weight of the whole step, so results do
not depend on how a step is cut into micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from searchrl.errors import SearchRLError
from searchrl.training.adamw import open_adamw, trained_parameters
from searchrl.training.batch import micro_batches
from searchrl.training.recomputation import recompute_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: ``weights[t]`` is how much predicting ``token_ids[t]`` counts."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """How long and how fast to learn.

    Attributes:
        steps: optimizer steps.
        tokens_per_step: examples are drawn until a step holds this many tokens.
        tokens_per_micro_batch: padded size of one forward pass.
        learning_rate: peak; reached linearly over ``warmup_steps``, then cosine to a tenth.
        warmup_steps: linear warm-up.
        weight_decay: AdamW's, on matrices only.
        autocast: compute in bfloat16.
        gradient_checkpointing: compute activations anew in the backward pass.
        offload: keep the optimizer's numbers on the CPU.
    """

    steps: int
    tokens_per_step: int = 8192
    tokens_per_micro_batch: int = 8192
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    autocast: bool = False
    gradient_checkpointing: bool = False
    offload: bool = False

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def train_supervised(
    model: PreTrainedModel,
    examples: Iterator[Example],
    settings: SupervisedSettings,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Train ``model`` in place, on the device it is on.

    Args:
        model: any causal language model of transformers.
        examples: an endless or long enough stream.
        settings: see there.
        on_step: called with the step and its metrics: loss, accuracy of greedy prediction on
            full-weight tokens, tokens, seconds, learning rate.

    Raises:
        SearchRLError: the examples ended before the steps, no token of a step has a weight, or a
            gradient is not finite; the step it belongs to is not taken.
    """
    optimizer = _optimizer(model, settings)
    if settings.gradient_checkpointing:
        recompute_blocks(model)
    model.train()
    for step in range(settings.steps):
        started = time.perf_counter()
        rows = _take(examples, settings.tokens_per_step)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        metrics = _update(model, optimizer, rows, settings)
        metrics["seconds"] = time.perf_counter() - started
        metrics["learning_rate"] = settings.rate(step)
        if on_step is not None:
            on_step(step, metrics)
    model.eval()


def _update(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Example],
    settings: SupervisedSettings,
) -> dict[str, float]:
    total_weight = sum(sum(row.weights[1:]) for row in rows)
    if not total_weight:
        raise SearchRLError("no token of this step's examples has a weight; nothing can be learned")
    loss_sum, hits, counted = 0.0, 0, 0
    lengths = [len(row.token_ids) for row in rows]
    for batch in micro_batches(lengths, settings.tokens_per_micro_batch):
        tokens_BT, weights_BT = _pad([rows[i] for i in batch], model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.autocast):
            # No attention mask: padding is on the right, where no real token attends.
            logits_BTV = model(input_ids=tokens_BT).logits
        targets, weights = tokens_BT[:, 1:].flatten(), weights_BT[:, 1:].flatten()
        logits = logits_BTV[:, :-1].flatten(0, 1).float()
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        loss = (losses * weights).sum() / total_weight
        loss.backward()
        full = weights >= 1
        loss_sum += loss.item()
        hits += int((logits.argmax(-1)[full] == targets[full]).sum())
        counted += int(full.sum())
    return {
        "loss": loss_sum,
        "accuracy": hits / max(1, counted),
        "tokens": float(sum(lengths)),
        "grad_norm": _apply(model, optimizer),
    }


def _apply(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> float:
    """Take the optimizer's step and return the norm of the gradient, which is cut to 1."""
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not math.isfinite(norm):
        raise SearchRLError("a gradient is not finite; lower the learning rate")
    return norm


def _optimizer(model: PreTrainedModel, settings: SupervisedSettings) -> torch.optim.Optimizer:
    trained = trained_parameters(model)
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return open_adamw(groups, settings.offload, lr=settings.learning_rate, betas=(0.9, 0.98))


def _take(examples: Iterator[Example], tokens: int) -> list[Example]:
    rows: list[Example] = []
    while sum(len(row.token_ids) for row in rows) < tokens:
        row = next(examples, None)
        if row is None:
            raise SearchRLError("the examples ended before the steps did; give more or train less")
        rows.append(row)
    return rows


def _pad(rows: Sequence[Example], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids and weights, each ``[B, T]``."""
    width = max(len(row.token_ids) for row in rows)
    tokens_BT = torch.zeros(len(rows), width, dtype=torch.long)
    weights_BT = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        length = len(row.token_ids)
        tokens_BT[index, :length] = torch.tensor(row.token_ids)
        weights_BT[index, :length] = torch.tensor(row.weights)
    return tokens_BT.to(device), weights_BT.to(device)
