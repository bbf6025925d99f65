"""Small models and episodes whose every token a test decides."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from searchrl.agents.episode import Episode, Reward, Segment
from searchrl.data.questions import Question
from searchrl.experiment import Experiment
from searchrl.models.local import LocalModel
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe
from searchrl.training.learner import Group, Learner
from searchrl.training.options import LearningOptions

VOCABULARY = 60
MIXED = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0]]
"""Rewards of three groups, one of which has nothing to compare."""
PPO: dict[str, Any] = {"algorithm": "ppo", "lam": 0.9, "gamma": 0.99}
Piece = tuple[Literal["prompt", "model", "environment"], int]
SHAPE: tuple[Piece, ...] = (("prompt", 5), ("model", 3), ("environment", 4), ("model", 2))


def tiny_model(seed: int = 0, tied: bool = True) -> PreTrainedModel:
    """Two layers of width 32; distributions far from uniform, so that gradients are not tiny."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return model.eval()


def episode(
    seed: int, reward: float | None, shape: Sequence[Piece] = SHAPE, name: str = "q"
) -> Episode:
    """Random tokens in segments of the given origins and lengths."""
    draw = random.Random(seed)
    segments = []
    for origin, length in shape:
        tokens = tuple(draw.randrange(VOCABULARY) for _ in range(length))
        logprobs = tuple(-4 * draw.random() for _ in tokens) if origin == "model" else ()
        segments.append(Segment(origin, tokens, "", logprobs))
    made = Episode(Question(name, "What?", ("that",)), "s3", segments)
    made.reward = Reward(reward)
    return made


def random_shape(draw: random.Random) -> list[Piece]:
    """A prompt, then one to three outputs with results between them."""
    shape: list[Piece] = [("prompt", draw.randint(1, 9)), ("model", draw.randint(1, 6))]
    for _ in range(draw.randrange(3)):
        shape += [("environment", draw.randint(1, 8)), ("model", draw.randint(1, 6))]
    if draw.random() < 0.5:
        shape.append(("environment", draw.randint(1, 8)))
    return shape


def groups(seed: int, rewards: Sequence[Sequence[float]]) -> list[Group]:
    """One group a list of rewards, episodes of different shapes."""
    draw = random.Random(seed)
    return [
        Group(
            tuple(
                episode(draw.randrange(10**9), reward, random_shape(draw), f"q{number}")
                for reward in row
            )
        )
        for number, row in enumerate(rewards)
    ]


def learner(
    model: PreTrainedModel | None = None, reference: PreTrainedModel | None = None, **values: Any
) -> Learner:
    """A learner of its own copy of the model; gradients are not clipped unless asked."""
    values = {"algorithm": "grpo", "learning_rate": 1e-3, "max_grad_norm": 1e9} | values
    searcher = copy.deepcopy(model if model is not None else tiny_model())
    temperature = values.pop("temperature", 1.0)
    return Learner(searcher, LearningOptions(**values), temperature, reference)


def watch_gradients(subject: Learner) -> list[dict[str, torch.Tensor]]:
    """Collects a copy of all gradients each time an optimizer is about to step."""
    seen: list[dict[str, torch.Tensor]] = []
    named = [(subject.optimizer, "searcher", subject.searcher)]
    if subject.critic is not None and subject.critic_optimizer is not None:
        named.append((subject.critic_optimizer, "critic", subject.critic))
    for optimizer, label, module in named:

        def note(*_: Any, label: str = label, module: torch.nn.Module = module) -> None:
            seen.append({f"{label}.{name}": g for name, g in _gradients(module)})

        optimizer.register_step_pre_hook(note)
    return seen


def gradients_of(
    made: Sequence[Group], model: PreTrainedModel | None = None, **values: Any
) -> dict[str, torch.Tensor]:
    """All gradients of one update by a learner made with ``values``."""
    subject = learner(model, **values)
    seen = watch_gradients(subject)
    subject.update(made, 0)
    return merged(seen)


def merged(seen: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """All gradients of one optimizer step."""
    return {name: gradient for part in seen for name, gradient in part.items()}


def state(subject: Learner) -> dict[str, torch.Tensor]:
    """A copy of everything a learner holds: weights, critic, both optimizers' states."""
    held = {f"searcher.{k}": v for k, v in subject.searcher.state_dict().items()}
    if subject.critic is not None:
        held |= {f"critic.{k}": v for k, v in subject.critic.state_dict().items()}
    for label, optimizer in (
        ("optimizer", subject.optimizer),
        ("critic_optimizer", subject.critic_optimizer),
    ):
        if optimizer is not None:
            for index, values in optimizer.state_dict()["state"].items():
                held |= {f"{label}.{index}.{k}": v for k, v in values.items()}
    return {name: value.clone() for name, value in held.items()}


def assert_bitwise_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def assert_close(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float
) -> None:
    """Equal up to a share of the largest entry of all."""
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in one.values())
    assert scale > 0
    for name in one:
        far = float((one[name] - other[name]).abs().max()) / scale
        assert far <= tolerance, (name, far)


class Parity:
    """A reward that varies even for a random model: are the sampled tokens' ids even in sum?"""

    async def score(self, episode: Episode) -> Reward:
        sampled = sum(sum(s.token_ids) for s in episode.segments if s.origin == "model")
        return Reward(float(sampled % 2 == 0), {"even": float(sampled % 2 == 0)})


class ParityExperiment(Experiment):
    """An experiment that a random model can learn something from."""

    def reward(self) -> Any:
        return Parity()


def save_model(model: LocalModel, folder: Path) -> Path:
    """Write a model where a recipe can name it."""
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def small_recipe(model: Path, *overrides: str, base: str = "tiny-grpo") -> Recipe:
    """Four steps of eight short episodes in a world of 120 passages."""
    values = {
        "data.train.size": 120,
        "data.train.questions": 24,
        "data.test.size": 120,
        "data.test.questions": 10,
        "searcher.model": f'"{model}"',
        "generator.model": f'"{model}"',
        "generator.max_answer_tokens": 6,
        "generator.max_context_tokens": 300,
        "agent.max_turns": 1,
        "agent.max_response_tokens": 10,
        "agent.max_prompt_tokens": 350,
        "agent.max_observation_tokens": 120,
        "reward.kind": "context_recall",
        "rollout.questions_per_step": 4,
        "rollout.group_size": 2,
        "rollout.temperature": 0.9,
        "learning.learning_rate": 0.003,
        "run.steps": 4,
        "run.save_every": 2,
        "evaluation.questions": 10,
    }
    lines = [f"{key}={value}" for key, value in values.items()]
    return load_recipe(base, [*lines, *overrides])


def search_r1_recipe(model: Path, *overrides: str) -> Recipe:
    """Two steps of Search-R1 with one search an episode at most, learning from exact match."""
    own = ("reward.kind=exact_match", "run.steps=2")
    return small_recipe(model, *own, *overrides, base="tiny-search-r1-grpo")


def _gradients(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad.clone()
