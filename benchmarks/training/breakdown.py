"""Where a step's CPU seconds go, and how far generation is from what the machine can do.

    python -m benchmarks.training.breakdown

One GRPO step of s3 with the tiny searcher, Gain Beyond RAG for its reward, one thread, after a step
of warm-up from the same weights. Time is charged to the innermost part that is running. The floor
of a part counts its products of matrices and its attention, and what it has to read once: the
weights a pass, and the keys and values of every row it decodes. Bytes are divided by the bandwidth
and operations by the speed of a product of matrices, both measured here, and the floor is the
larger of the two quotients.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.training.stopwatch import Stopwatch
from searchrl.agents.agent import Draw
from searchrl.agents.episode import Episode
from searchrl.agents.trained import open_agent
from searchrl.experiment import Experiment
from searchrl.models.cohort import Cohort
from searchrl.models.drawing import Drawing
from searchrl.models.local import LocalModel
from searchrl.models.packed_decoder import PackedDecoder, _Prefill
from searchrl.models.token_tree import TokenTree
from searchrl.recipe import Recipe
from searchrl.recipe_file import load_recipe
from searchrl.seeding import derive_seed
from searchrl.training.learner import Group, Learner
from searchrl.training.questions import training_questions
from searchrl.training.rollout import questions_of_step

_BYTES = 4
"""Of a number."""


@dataclass(slots=True)
class Amount:
    """Operations and bytes of some passes."""

    operations: float = 0.0
    bytes: float = 0.0

    def floor(self, machine: Machine) -> float:
        """Seconds that they take at least."""
        return max(self.operations / machine.operations, self.bytes / machine.bandwidth)


@dataclass(frozen=True, slots=True)
class Machine:
    """What one thread can do in a second."""

    operations: float
    bandwidth: float

    @classmethod
    def measure(cls) -> Machine:
        """The best of some tries, so that another program's work does not count."""
        size = 1024
        square, large = torch.rand(size, size), torch.rand(64 << 20)
        product = _best(lambda: square @ square)
        return cls(2 * size**3 / product, _BYTES * large.numel() / _best(large.sum))


def _best(work: Any, tries: int = 8) -> float:
    times = []
    for _ in range(tries):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


class Counter:
    """Counts what a searcher's passes compute and read."""

    def __init__(self, searcher: LocalModel) -> None:
        config = searcher.model.config
        self._decoder = searcher._decoder
        self._head = config.vocab_size * config.hidden_size
        weights = sum(p.numel() for p in searcher.model.model.layers.parameters())
        self._weights, self._layers = weights, config.num_hidden_layers
        self._query = config.num_attention_heads * config.head_dim
        self._kept = config.num_key_value_heads * config.head_dim
        self.prefill, self.decode = Amount(), Amount()

    def watch(self, stack: ExitStack) -> None:
        """Count until the stack unwinds."""
        for name, note in (("_logits", self._note_prefill), ("_step", self._note_step)):
            own = getattr(PackedDecoder, name)

            def counted(decoder: Any, *given: Any, own: Any = own, note: Any = note) -> Any:
                if decoder is self._decoder:
                    note(decoder, *given)
                return own(decoder, *given)

            stack.enter_context(mock.patch.object(PackedDecoder, name, counted))

    def _note_prefill(self, _: PackedDecoder, tree: TokenTree, *__: Any) -> None:
        seen = int((tree.positions + 1).sum())
        self._add(self.prefill, len(tree), len(tree.places), seen, read=0)

    def _note_step(self, decoder: PackedDecoder) -> None:
        lengths = [one.position + 1 for one in decoder._running.live]
        self._add(self.decode, len(lengths), len(lengths), sum(lengths), read=sum(lengths))

    def _add(self, amount: Amount, tokens: int, drawn: int, seen: int, read: int) -> None:
        amount.operations += 2 * (self._weights * tokens + self._head * drawn)
        amount.operations += 4 * self._query * self._layers * seen
        amount.bytes += _BYTES * (self._weights + self._head)
        amount.bytes += _BYTES * 2 * self._kept * self._layers * read


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="tiny-grpo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe, options.set)
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(recipe, Path(folder))
        step(experiment, recipe)
        seconds, counter = step(experiment, recipe)
    machine = Machine.measure()
    print(_table(seconds, counter, machine))


def step(experiment: Experiment, recipe: Recipe) -> tuple[dict[str, float], Counter]:
    """One step from the recipe's own weights, watched."""
    questions = asyncio.run(training_questions(experiment))
    asked = questions_of_step(questions, 0, recipe.rollout.questions_per_step, recipe.seed)
    searcher = experiment.trainable()
    reference = experiment.searcher().model if recipe.learning.kl_coefficient > 0 else None
    learner = Learner(searcher.model, recipe.learning, recipe.rollout.temperature, reference)
    agent = open_agent(recipe.agent, searcher, experiment.train.retriever)
    reward = experiment.reward()
    seeds = range(recipe.rollout.group_size)
    watch, counter = Stopwatch("agents and scheduling"), Counter(searcher)
    with ExitStack() as stack:
        _watch(watch, stack, experiment, searcher)
        counter.watch(stack)

        async def roll_out() -> list[Episode]:
            draws = (
                (question, derive_seed(recipe.seed, 0, question.id, sample))
                for question in asked
                for sample in seeds
            )
            temperature = recipe.rollout.temperature
            tasks = [agent.run(question, Draw(temperature, seed)) for question, seed in draws]
            return await asyncio.gather(*tasks)

        async def score() -> None:
            scored = [reward.score(episode) for episode in episodes]
            for episode, value in zip(episodes, await asyncio.gather(*scored), strict=True):
                episode.reward = value

        episodes = asyncio.run(roll_out())
        with _silenced(watch, "reward"):
            asyncio.run(score())
        size = len(seeds)
        starts = range(0, len(episodes), size)
        with watch.on("update: the rest"):
            learner.update([Group(tuple(episodes[at : at + size])) for at in starts], 0)
        return watch.stop(), counter


def _watch(
    watch: Stopwatch, stack: ExitStack, experiment: Experiment, searcher: LocalModel
) -> None:
    watch.watch(stack, PackedDecoder, "_begin", "prefill: matrices and the rest")
    watch.watch(stack, PackedDecoder, "_step", "decoding: matrices and the rest")
    watch.watch(stack, _Prefill, "attend", "prefill: attention")
    watch.watch(stack, Cohort, "attend", "decoding: attention")
    watch.watch(stack, Drawing, "draw", "drawing tokens")
    watch.watch(stack, searcher.model.lm_head, "forward", "head")
    watch.watch(stack, type(experiment.train.retriever), "rank", "retrieval")
    watch.watch(stack, Learner, "_logprobs", "update: forward")
    watch.watch(stack, torch.Tensor, "backward", "update: backward")
    watch.watch(stack, Learner, "_apply", "update: optimizer")


@contextmanager
def _silenced(watch: Stopwatch, name: str) -> Iterator[None]:
    """Charge all to one name, whatever is opened within."""
    with watch.on(name), mock.patch.object(watch, "on", return_value=nullcontext()):
        yield


def _table(seconds: dict[str, float], counter: Counter, machine: Machine) -> str:
    total = sum(seconds.values())
    lines = ["| part | CPU s | share |", "|---|---:|---:|"]
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        lines.append(f"| {name} | {spent:.2f} | {spent / total:.0%} |")
    lines += [
        f"| together | {total:.2f} | |",
        "",
        f"one thread: {machine.operations / 1e9:.0f} G operations/s, "
        f"{machine.bandwidth / 1e9:.1f} GB/s",
        "",
        "| generation | G operations | GB | floor, s | CPU s | times the floor |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, amount in (("prefill", counter.prefill), ("decoding", counter.decode)):
        spent = sum(value for part, value in seconds.items() if part.startswith(name))
        floor = amount.floor(machine)
        lines.append(
            f"| {name} | {amount.operations / 1e9:.1f} | {amount.bytes / 1e9:.1f} | {floor:.2f} "
            f"| {spent:.2f} | {spent / floor:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
