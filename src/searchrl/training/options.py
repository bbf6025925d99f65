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

from searchrl.models.options import VllmOptions
from searchrl.options import Options
from searchrl.reporting.services import Service
from searchrl.training.averaging import Average

Algorithm = Literal["ppo", "grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]


class LearningOptions(Options):
    """How a policy is updated."""

    algorithm: Algorithm = "ppo"
    """``ppo`` learns a critic and uses GAE; ``grpo`` and ``rloo`` compare the episodes of one
    question; ``reinforce_plus_plus`` normalises over the whole step, with ``_baseline`` after each
    group's mean is taken out."""
    learning_rate: PositiveFloat = 1e-6
    """AdamW's, for the searcher."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the searcher's rate rises linearly."""
    critic_learning_rate: PositiveFloat = 1e-5
    """AdamW's, for the critic."""
    critic_warmup_steps: NonNegativeInt = 0
    """Steps over which the critic's rate rises linearly."""
    final_rate: float = Field(1.0, ge=0, le=1)
    """Share of both rates that is left at the last of ``run.steps``; they fall to it linearly after
    the warm-up, so below 1 a run that is made longer is another run."""
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
    lone_episodes: bool = False
    """GRPO: take groups of one, ``rollout.group_size = 1``, whose advantage is the reward itself as
    in Search-R1 and verl. Nothing is subtracted, so an episode without reward teaches nothing."""
    loss_average: Average = "token"
    """The policy loss is averaged over the step's tokens (DAPO), over episodes and in each over its
    tokens (GRPO as published), or over ``loss_constant`` tokens an episode (Dr. GRPO)."""
    loss_constant: PositiveInt | None = None
    """Tokens an episode is taken to have where ``loss_average`` is ``constant``."""
    mask_retrieved: bool = True
    """Learn from sampled tokens alone. Off, retrieved ones take part in the loss, its KL term,
    advantages and the critic: the ablation of Search-R1's paper."""
    mask_truncated: bool = False
    """Episodes cut off by the context budget count in their group's baseline, not in the loss
    (DAPO's over-long filtering)."""
    importance_cap: PositiveFloat | None = None
    """Weight each token by its probability here over that in the rollout, at most this much
    (truncated importance sampling); no correction when left out."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the searcher that training began with."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtract it from the reward (``ppo``, ``rloo``, ``reinforce_plus_plus``) or add it to the
    loss."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """How it is estimated from sampled tokens."""
    kl_target: PositiveFloat | None = None
    """Adapt the weight so that the divergence stays near this many nats a token; fixed when left
    out."""
    kl_horizon: PositiveInt = 10_000
    """Episodes over which the weight adapts."""
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
    gradient_checkpointing: bool = False
    """Keep each block's input alone for the backward pass and compute the rest, and the head a part
    at a time, anew: the same gradients, in far less memory, for one more forward pass."""
    offload: bool = False
    """Keep the optimizers' numbers on the CPU, and the weights of critic and reference while they
    have nothing to do."""

    @model_validator(mode="after")
    def _check_combination(self) -> LearningOptions:
        in_reward = self.kl_coefficient > 0 and self.kl_placement == "reward"
        if in_reward and self.algorithm in ("grpo", "reinforce_plus_plus_baseline"):
            raise ValueError(
                f'algorithm = "{self.algorithm}" takes no KL term from its rewards: '
                'set kl_placement = "loss" or kl_coefficient = 0'
            )
        if self.kl_target is not None and self.kl_coefficient == 0:
            raise ValueError("kl_target adapts kl_coefficient: set one to begin with, above 0")
        if (self.loss_average == "constant") != (self.loss_constant is not None):
            raise ValueError(
                'loss_average = "constant" and loss_constant go together: set both or none'
            )
        if not self.scale_by_deviation and self.algorithm != "grpo":
            raise ValueError(
                f'scale_by_deviation = false is a switch of "grpo", not of "{self.algorithm}": '
                "remove it or change algorithm"
            )
        if self.lone_episodes and self.algorithm != "grpo":
            raise ValueError(
                f'lone_episodes = true is a switch of "grpo"; "{self.algorithm}" does without: '
                "remove it"
            )
        return self

    @property
    def compares_groups(self) -> bool:
        """Whether an episode's baseline is made from others of the same question."""
        compares = ("grpo", "rloo", "reinforce_plus_plus_baseline")
        return self.algorithm in compares and not self.lone_episodes


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
    refill_rounds: NonNegativeInt = 0
    """Drop groups with equal rewards and ask other questions in their place, up to this many times
    a step (DAPO's dynamic sampling)."""
    drop_equal_groups: bool = False
    """Leave groups with equal rewards out of the update even where none replaces them: they teach
    nothing but the KL and entropy terms."""
    engine: Literal["native", "vllm"] = "native"
    """What decodes: this package on the searcher's own weights, or vLLM in this process, which gets
    a copy of them after every update."""
    vllm: VllmOptions = VllmOptions()


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
    gradient_checkpointing: bool = False
    """Keep each block's input alone for the backward pass and compute the rest anew."""
    offload: bool = False
    """Keep the optimizer's numbers on the CPU."""


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
    parallel: Literal["ddp", "fsdp"] | None = None
    """Where torchrun has started several processes: all weights on each (``ddp``), or cut among
    them (``fsdp``); by the searcher's size when left out. A resumed run may change this."""


class GuardOptions(Options):
    """When a run is warned of, and when it is stopped; a resumed run may change these."""

    nonfinite_updates: PositiveInt = 3
    """Stop after this many skipped updates in a row; an update with a gradient that is not finite
    is skipped."""
    mismatch_warning: PositiveFloat = 0.01
    """Warn when rollouts and trainer differ by more, in nats a token."""
    mismatch_stop: PositiveFloat = 0.1
    """Stop when they do so by more for ``patience`` steps on end."""
    entropy_left: float = Field(0.1, ge=0, le=1)
    """Warn when the entropy is below this share of what the run began with."""
    reward_lost: float = Field(0.5, gt=0)
    """Warn when the mean reward has lost more than this share of what it had gained."""
    reward_scale: PositiveFloat = 0.2
    """A gain that is smaller than this counts as this much."""
    reward_window: PositiveInt = 5
    """Steps over which rewards are averaged for that."""
    all_equal_groups: float = Field(0.9, ge=0, le=1)
    """Warn when a larger share of the groups has equal rewards, for ``patience`` steps on end."""
    truncated_episodes: float = Field(0.5, ge=0, le=1)
    """Warn when a larger share of the episodes meets the context budget, likewise."""
    invalid_turns: float = Field(0.5, ge=0, le=1)
    """Warn when a larger share of the outputs asks for nothing that can be read, likewise."""
    failed_episodes: float = Field(0.05, ge=0, le=1)
    """Warn when a larger share of the episodes meets a failed service, likewise."""
    patience: PositiveInt = 3
    """Steps that a state has to last where one step says little."""


class TrackingOptions(Options):
    """Where metrics go besides ``metrics.jsonl``; a resumed run may change these."""

    services: tuple[Service, ...] = ()
    """Services that get every step's metrics; each is an extra of its name."""
    project: str = "searchrl"
    """The project that runs are gathered in."""
