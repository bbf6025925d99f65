"""Modules that wait on one device and work on another.

The reference and the critic of a run have nothing to do while episodes are made. What their weights
take of a GPU then can be keys and values instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Placement:
    """Where a module is: at home, or at work for the while that it is used.

    Args:
        module: brought home at once; ``None`` where there is none. Its parameters stay the same
            objects, so an optimizer may hold them; gradients move along.
        home: where it waits.
        work: where it is used.
    """

    def __init__(
        self, module: torch.nn.Module | None, home: torch.device, work: torch.device
    ) -> None:
        self._module, self._home, self._work = module, home, work
        self._go(home)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The module is on its work device for the while, and goes home however that ends."""
        self._go(self._work)
        try:
            yield
        finally:
            self._go(self._home)

    def _go(self, place: torch.device) -> None:
        if self._module is not None and self._home != self._work:
            self._module.to(place)
