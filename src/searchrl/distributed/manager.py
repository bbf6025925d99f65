"""Starts the agent workers of verl's trainer, and sees that each of them knows our agent loop.

A plugin that fails to load is passed over by verl in silence, and the run would then die step by
step of prompts without an answer. Here it ends before the first step, with what is wrong where.
"""

from __future__ import annotations

from typing import Any

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

import searchrl
from searchrl.distributed.translation import LOOP
from searchrl.errors import InputError


class SearchLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]
    """verl's manager of agent workers, with the check."""

    async def _init_agent_loop_workers(self) -> None:
        await super()._init_agent_loop_workers()
        asked = [worker.__ray_call__.remote(state_of) for worker in self.agent_loop_workers]
        for state in ray.get(asked):
            check_worker(state)


def state_of(worker: Any) -> dict[str, str]:
    """Runs in a worker: where it is, what it has."""
    import socket

    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry

    known = LOOP in _agent_loop_registry
    return {
        "host": socket.gethostname(),
        "searchrl": searchrl.__version__,
        "problem": "" if known else _import_problem(),
    }


def _import_problem() -> str:
    try:
        import searchrl.distributed.plugin  # noqa: F401
    except Exception as error:  # noqa: BLE001 - it is the answer
        return f"{type(error).__name__}: {error}"
    return "verl did not load its plugins; unset VERL_USE_EXTERNAL_PLUGINS"


def check_worker(state: dict[str, str]) -> None:
    """See that a worker can run our agents as this process would.

    Raises:
        InputError: it cannot; the line names its host and the fix.
    """
    if state["problem"]:
        raise InputError(
            f"{state['host']}: the searchrl plugin is not registered in verl's agent worker "
            f"({state['problem']}); install 'searchrl[torch,verl]' there"
        )
    if state["searchrl"] != searchrl.__version__:
        raise InputError(
            f"{state['host']}: searchrl {state['searchrl']} there and {searchrl.__version__} here; "
            "install one version everywhere"
        )
