"""This project's engine; with ``{"plain": true}``, a loop around transformers in its place.

    python -m benchmarks.training.engines.ours ORDER.json

``plain`` pads prompts, prefills every turn from its beginning and updates on padded rows.
``decoding`` is the recipe's setting of that name.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from unittest import mock

import torch

from benchmarks.training.engines.order import Order, StepDone, claim_stdout, tell
from benchmarks.training.replay import replay
from searchrl.agents.episode import Episode
from searchrl.models import local
from searchrl.models.local import LocalModel, load_model
from searchrl.training import networks
from searchrl.training.learner import Group, Learner
from searchrl.training.options import LearningOptions


def main() -> None:
    """Do the order."""
    out = claim_stdout()
    order = Order.read(Path(sys.argv[1]))
    torch.set_num_threads(1)
    with ExitStack() as stack:
        if order.setting("plain", False):
            for module in (local, networks):
                stack.enter_context(mock.patch.object(module, "packs", return_value=False))
        engine = Engine(order)
        for step in range(order.steps):
            tell(engine.step(step), out)


class Engine:
    """A searcher, and the learner that trains it."""

    def __init__(self, order: Order) -> None:
        self._order = order
        autocast = order.dtype != "float32"
        self._searcher = load_model(
            order.model, order.device, decoding=order.setting("decoding", "auto")
        )
        options = LearningOptions(
            algorithm=order.work.algorithm,
            learning_rate=order.learning_rate,
            critic_learning_rate=order.learning_rate,
            tokens_per_micro_batch=order.setting("tokens_per_micro_batch", 8192),
            autocast=autocast,
        )
        self._learner = Learner(self._searcher.model, options, temperature=1.0)
        self._rollout = _RolloutCopy(self._searcher, order)

    def step(self, step: int) -> StepDone:
        """One rollout and one update."""
        device = self._order.device
        _reset_peak(device)
        started = _now(device)
        episodes = asyncio.run(self._collect(step))
        collected = _now(device)
        by_question = groupby(episodes, key=lambda episode: episode.question.id)
        groups = [Group(tuple(members)) for _, members in by_question]
        self._learner.update(groups, step)
        updated = _now(device)
        parts = [episode.reward.parts for episode in episodes if episode.reward is not None]
        rewards = [reward for group in groups for reward in group.rewards]
        return StepDone(
            samples=len(episodes),
            prompt=round(sum(part["prompt"] for part in parts)),
            told=round(sum(part["environment"] for part in parts)),
            said=round(sum(part["model"] for part in parts)),
            reward=sum(rewards) / len(rewards),
            rollout=collected[0] - started[0],
            update=updated[0] - collected[0],
            rollout_cpu=collected[1] - started[1],
            update_cpu=updated[1] - collected[1],
            device_bytes=_peak(device),
        )

    async def _collect(self, step: int) -> Sequence[Episode]:
        model = self._rollout.model()
        scripts = self._order.scripts(step)
        tasks = [replay(script, model, self._order.draw(script)) for script in scripts]
        episodes = await asyncio.gather(*tasks)
        model.rest()
        return episodes


class _RolloutCopy:
    """What samples: the searcher itself, or a copy in fewer bits that follows its weights."""

    def __init__(self, searcher: LocalModel, order: Order) -> None:
        self._searcher = searcher
        self._copy: LocalModel | None = None
        if order.dtype != "float32":
            kind = getattr(torch, order.dtype)
            fresh = type(searcher.model)(searcher.model.config).to(searcher.model.device, kind)
            decoding = order.setting("decoding", "auto")
            self._copy = LocalModel(fresh.eval(), searcher.tokenizer, decoding=decoding)

    def model(self) -> LocalModel:
        if self._copy is None:
            return self._searcher
        with torch.no_grad():
            pairs = zip(
                self._copy.model.parameters(), self._searcher.model.parameters(), strict=True
            )
            for own, trained in pairs:
                own.copy_(trained)
        return self._copy


def _now(device: str) -> tuple[float, float]:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
