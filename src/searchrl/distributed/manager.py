"""Starts the agent workers of verl's trainer, and sees that each of them knows our agent loop.

A plugin that fails to load is passed over by verl in silence, and the run would then die step by
step of prompts without an answer. Here it ends before the first step, with what is wrong where.
"""

from __future__ import annotations

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from searchrl.distributed.plugin_check import check_worker, state_of


class SearchLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]
    """verl's manager of agent workers, with the check."""

    async def _init_agent_loop_workers(self) -> None:
        await super()._init_agent_loop_workers()
        asked = [worker.__ray_call__.remote(state_of) for worker in self.agent_loop_workers]
        for state in ray.get(asked):
            check_worker(state)
