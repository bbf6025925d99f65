"""A CUDA graph's stand-in on a CPU: operations on fixed tensors, noted once and done over again.

Like a graph it holds tensors by their place and numbers by their value, calls no Python of what it
recorded, and refuses to wait for what is computed. Unlike one it has to compute while it records,
so what is recorded is done by then, and the first time that it is asked for nothing is left to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from searchrl.models.steps import Record

_aten = torch.ops.aten
_REFUSED = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.lift_fresh.default}
"""A look at what was computed, a shape that depends on it, and a number from the host."""


class Operations(TorchDispatchMode):
    """Notes all operations while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, found))
        return found


class Tape:
    """Records like ``steps.graph_recorder``; counts what it does.

    Attributes:
        recorded: how often something was recorded.
        replayed: how often it was done again.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def recorder(self) -> Record:
        return self._record

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        with Operations() as operations:
            work()
        self.recorded += 1
        assert not _REFUSED & {function for function, *_ in operations.done}
        done = True

        def replay() -> None:
            nonlocal done
            self.replayed += 1
            for function, args, kwargs, found in () if done else operations.done:
                _repeat(function, args, kwargs, found)
            done = False

        return replay


def _repeat(function: Any, args: Any, kwargs: Any, found: Any) -> None:
    """Once more, with what comes of it where it came to before."""
    again = function(*args, **kwargs)
    for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
        # A view, or what was written in place, is there already.
        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
            old.copy_(new)
