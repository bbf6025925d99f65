"""CPU seconds of one training step: with all of the engine, and with its parts left out.

    python -m benchmarks.training.ablations --repeats 3

One step of s3 with the tiny searcher: the same questions, seeds and weights for every variant, so
every variant samples the same episodes (the tokens in the table say whether it did). ``plain`` is
what a loop around transformers does: prompts padded to the longest, every turn prefilled from its
beginning, the update on padded rows. Variants take turns within a repeat, each in this process on
one thread, and the table shows medians; the models are loaded, and each variant has run once,
before the clock starts. Rewards are gold-passage recall, which costs nothing, so that only the
searcher is timed. ``--compiled`` adds a variant whose decoding steps are compiled, for minutes
before the clock starts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from searchrl.agents.trained import open_agent
from searchrl.experiment import Experiment
from searchrl.models import local
from searchrl.models.local import LocalModel
from searchrl.models.options import Decoding
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe
from searchrl.rewards.context_recall import ContextRecall
from searchrl.training import networks
from searchrl.training.learner import Learner
from searchrl.training.rollout import Rollout, collect, questions_of_step


@dataclass(frozen=True, slots=True)
class Variant:
    """Which parts of the engine are used."""

    name: str
    packed_rollout: bool = True
    packed_update: bool = True
    decoding: Decoding = "auto"


COMPILED = Variant("compiled steps", decoding="compiled")
VARIANTS = (
    Variant("all"),
    Variant("padded rollout", packed_rollout=False),
    Variant("padded update", packed_update=False),
    Variant("plain", packed_rollout=False, packed_update=False),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of one step's parts, and what it worked on."""

    rollout: float
    update: float
    episodes: int
    tokens: int
    trainable: int

    @property
    def samples_per_second(self) -> float:
        """Episodes sampled and learned from in a CPU second."""
        return self.episodes / (self.rollout + self.update)


def main() -> None:
    """Run all variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithm", choices=("grpo", "ppo"), default="grpo")
    parser.add_argument("--searcher", default="tiny-searcher")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--passages", type=int, default=3, help="of each search")
    parser.add_argument("--turns", type=int, default=2, help="searches at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="compiled steps as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(
        f"tiny-{options.algorithm}",
        [
            f'searcher.model="{options.searcher}"',
            'reward.kind="context_recall"',
            f"rollout.questions_per_step={options.questions}",
            f"rollout.group_size={options.group}",
            f"agent.initial_k={options.passages}",
            f"agent.k={options.passages}",
            f"agent.max_turns={options.turns}",
            f"agent.max_observation_tokens={100 * options.passages}",
            f"agent.max_prompt_tokens={200 + 100 * options.passages}",
        ],
    )
    with tempfile.TemporaryDirectory() as directory:
        experiment = Experiment(recipe, Path(directory))
        variants = (*VARIANTS, COMPILED) if options.compiled else VARIANTS
        costs = measure(
            lambda variant: step_cost(experiment, recipe, variant), variants, options.repeats
        )
    print(table(costs))


def measure(
    cost: Callable[[Variant], Cost], variants: Sequence[Variant], repeats: int
) -> dict[str, list[Cost]]:
    """Each variant once to warm up, then all of them in turn, ``repeats`` times."""
    for variant in variants:
        cost(variant)
    costs: dict[str, list[Cost]] = {variant.name: [] for variant in variants}
    for _ in range(repeats):
        for variant in variants:
            costs[variant.name].append(cost(variant))
    return costs


def step_cost(experiment: Experiment, recipe: Recipe, variant: Variant) -> Cost:
    """One step from the recipe's own weights."""
    with ExitStack() as stack:
        if not variant.packed_rollout:
            stack.enter_context(mock.patch.object(local, "packs", return_value=False))
        if not variant.packed_update:
            stack.enter_context(mock.patch.object(networks, "packs", return_value=False))
        loaded = experiment.trainable()
        searcher = LocalModel(loaded.model, loaded.tokenizer, decoding=variant.decoding)
        reference = experiment.searcher().model
        learner = Learner(searcher.model, recipe.learning, recipe.rollout.temperature, reference)
        started = time.process_time()
        rollout = asyncio.run(_collect(experiment, recipe, searcher))
        collected = time.process_time()
        learner.update(rollout.groups, 0)
        updated = time.process_time()
    episodes = rollout.episodes
    return Cost(
        collected - started,
        updated - collected,
        len(episodes),
        sum(len(episode.token_ids) for episode in episodes),
        sum(sum(episode.trainable_mask) for episode in episodes),
    )


async def _collect(experiment: Experiment, recipe: Recipe, searcher: LocalModel) -> Rollout:
    split, rollout = experiment.train, recipe.rollout
    agent = open_agent(recipe.agent, searcher, split.retriever)
    asked = questions_of_step(split.questions, 0, rollout.questions_per_step, recipe.seed)
    return await collect(agent, ContextRecall(), asked, rollout, recipe.seed, 0, 1)


def table(costs: dict[str, list[Cost]]) -> str:
    """Medians, and each variant's samples a second as a share of those of ``plain``."""
    plain = _median([cost.samples_per_second for cost in costs["plain"]])
    lines = [
        "| variant | rollout, CPU s | update, CPU s | samples / CPU s | to plain | tokens | said |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rows in costs.items():
        speed = _median([cost.samples_per_second for cost in rows])
        lines.append(
            f"| {name} | {_median([c.rollout for c in rows]):.2f} "
            f"| {_median([c.update for c in rows]):.2f} | {speed:.1f} | {speed / plain:.1f} x "
            f"| {rows[0].tokens:,} | {rows[0].trainable:,} |"
        )
    return "\n".join(lines)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
