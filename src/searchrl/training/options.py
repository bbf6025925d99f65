"""What a recipe sets of training: the update, the rollouts, the length of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from searchrl.options import Options


class LearningOptions(Options):
    """How a policy is updated."""

    algorithm: Literal["ppo", "grpo"] = "ppo"
    """``ppo`` learns a critic and uses GAE; ``grpo`` compares the episodes of one question."""
    learning_rate: PositiveFloat = 1e-6
    """AdamW's, for the searcher."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the searcher's rate rises linearly."""
    critic_learning_rate: PositiveFloat = 1e-5
    """AdamW's, for the critic."""
    critic_warmup_steps: NonNegativeInt = 0
    """Steps over which the critic's rate rises linearly."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's, for both."""
    clip_low: PositiveFloat = 0.2
    """The ratio is clipped at 1 - ``clip_low``."""
    clip_high: PositiveFloat = 0.2
    """The ratio is clipped at 1 + ``clip_high``."""
    value_clip: PositiveFloat = 0.5
    """How far a value may move from its old one before its loss stops falling."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount a trainable token."""
    lam: float = Field(1.0, ge=0, le=1)
    """GAE's lambda."""
    whiten_advantages: bool = True
    """PPO: shift and scale advantages over all trainable tokens of a step."""
    scale_by_deviation: bool = True
    """GRPO: divide by the group's standard deviation; off is Dr. GRPO."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the searcher that training began with."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtract it from each token's reward (PPO only) or add it to the loss."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """How it is estimated from sampled tokens."""
    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    epochs: PositiveInt = 1
    """Passes over a step's episodes."""
    mini_batches: PositiveInt = 1
    """Optimizer steps a pass."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    tokens_per_micro_batch: PositiveInt = 16_384
    """Tokens of one forward and backward pass; what episodes share counts once."""
    autocast: bool = False
    """Compute the update in bfloat16; weights and optimizer stay as they are."""

    @model_validator(mode="after")
    def _check_combination(self) -> LearningOptions:
        if self.algorithm == "grpo" and self.kl_coefficient > 0 and self.kl_placement == "reward":
            raise ValueError(
                'algorithm = "grpo" has no per-token reward: set kl_placement = "loss" '
                "or kl_coefficient = 0"
            )
        return self


class RolloutOptions(Options):
    """How a step's episodes are made."""

    questions_per_step: PositiveInt = 120
    """Questions of one step."""
    group_size: PositiveInt = 1
    """Episodes a question."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; top-p is always 1 in training."""
    max_failed: float = Field(0.2, ge=0, lt=1)
    """Training stops when more than this share of a step's episodes met a failed service."""


class SupervisedOptions(Options):
    """Supervised fine-tuning, and the rejection sampling that makes its examples."""

    examples: Path | None = None
    """What ``searchrl sample`` wrote; questions and first gold answers when left out."""
    attempts: PositiveInt = 5
    """Rejection sampling: episodes a question."""
    least_reward: float = 1.0
    """Rejection sampling: an episode worth less is not kept."""
    epochs: PositiveInt = 1
    """Passes over the examples."""
    learning_rate: PositiveFloat = 2e-5
    """AdamW's at its peak; it falls to a tenth along a cosine."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's, on matrices only."""
    tokens_per_step: PositiveInt = 16_384
    """Tokens of one optimizer step, prompts and results included."""
    tokens_per_micro_batch: PositiveInt = 16_384
    """Padded tokens of one forward and backward pass."""
    autocast: bool = False
    """Compute in bfloat16; weights and optimizer stay as they are."""


class RunOptions(Options):
    """How long a run is and what it keeps."""

    steps: PositiveInt = 20
    """Policy updates; 20 of 120 episodes are the paper's 2,400."""
    save_every: PositiveInt = 10
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Older step checkpoints are removed."""
    keep_episodes: NonNegativeInt = 32
    """Episodes of a step that are written for reading."""
