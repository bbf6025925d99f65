"""Whether an agent worker of verl can run our agents, asked in the worker and judged outside."""

from __future__ import annotations

import socket
from typing import Any

import searchrl
from searchrl.distributed.translation import LOOP
from searchrl.errors import InputError


def state_of(worker: Any) -> dict[str, str]:
    """Runs in a worker: where it is, what it has."""
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
