"""Processes that train together, as threads of a test."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from searchrl.training.parallel.processes import Processes

T = TypeVar("T")


class _Meeting:
    """Where all hand in something and get everyone's."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=20)
        self._held: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._held[rank] = value
        self._barrier.wait()
        found = list(self._held)
        self._barrier.wait()
        return found

    def leave(self) -> None:
        """Let those who wait fail, as the peers of a process that has died do."""
        self._barrier.abort()


class Threads(Processes):
    """One of several threads, seen as a process."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self._rank = rank
        self._meeting = meeting

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._meeting.size

    def gather(self, value: Any) -> list[Any]:
        return self._meeting.exchange(self.rank, value)

    def add(self, tensor: torch.Tensor) -> None:
        parts = self._meeting.exchange(self.rank, tensor.clone())
        tensor.copy_(torch.stack(parts).sum(dim=0))


def together(size: int, work: Callable[[Processes], T]) -> list[T]:
    """What the work comes to in each of several processes, by rank."""
    meeting = _Meeting(size)

    def run(rank: int) -> T:
        try:
            return work(Threads(rank, meeting))
        except BaseException:
            meeting.leave()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
