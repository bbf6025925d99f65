"""What verl's agent workers run: the order's scripts, in the place of a recipe's agent.

Loaded in every process of verl by ``VERL_USE_EXTERNAL_MODULES``. The agent loop is the product's
own; only the services behind it are exchanged.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from benchmarks.training.engines.order import Order
from benchmarks.training.engines.verl import POLL
from benchmarks.training.replay import replay
from benchmarks.training.work import script_of
from searchrl.agents.episode import Episode
from searchrl.data.questions import Question
from searchrl.distributed import agent_loop, sampler
from searchrl.models.protocol import LanguageModel


class ReplayServices:
    """Runs scripts, as ``searchrl.distributed.services.Services`` runs agents."""

    thinking = True

    def __init__(self, order: Order) -> None:
        self._order = order

    async def attempt(
        self, question: Question, policy: LanguageModel, step: int, sample: int, temperature: float
    ) -> Episode:
        """One scored episode."""
        order = self._order
        script = script_of(order.work, order.seed, int(question.id), sample)
        return await replay(script, policy, order.draw(script))

    def keep(self, episode: Episode, step: int, place: int) -> None:
        """Nothing is kept for reading."""

    def place(self, index: int, sample: int) -> int:
        """Nor is it put anywhere."""
        return 0


@cache
def replay_services(run: Path) -> ReplayServices:
    """The services of a run, made once a process."""
    return ReplayServices(Order.read(run / "order.json"))


agent_loop.services_of = replay_services
if POLL in os.environ:
    sampler._POLL_SECONDS = float(os.environ[POLL])
