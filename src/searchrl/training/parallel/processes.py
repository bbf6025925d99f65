"""The processes that train together: which one this is, and what they tell each other.

All of them run the same program and take the same decisions, because they decide from the same
numbers: what is gathered comes back whole, in the order of the ranks, on every one of them. What is
added up is added up once and handed to all. Messages are JSON, nothing is unpickled.

A process that fails says so in torchrun's store and in one line; the others, which wait for it and
look there, end without a word of their own. Messages and sums on a CPU are waited for in Python, so
a signal or another's failure is noticed meanwhile; a collective on a GPU is not left before
torchrun kills its process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from searchrl.errors import SearchRLError

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store
    from torch.distributed import Work

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long one waits for another: a rollout may wait for a service that has gone down. A process
that has died is noticed by torchrun."""
_SHORTEST_LOOK, _LONGEST_LOOK = 0.0002, 0.02
"""Seconds between two looks at what is waited for."""
_FAILED = "failed"
_SECONDS_TO_SPEAK = 1.0
"""How long a silent process lets the one that failed first say why, before torchrun ends both."""


class Processes(Protocol):
    """Those that train together, seen from one of them."""

    @property
    def rank(self) -> int:
        """The number of this one, from 0; the first writes the run directory."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """What each has to say, by rank; JSON values. All have to call it."""
        ...

    def add(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by the sum over all processes; shapes agree. All have to call it."""
        ...


class Alone(Processes):
    """One process that waits for nobody."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        """See ``Processes``."""
        return [value]

    def add(self, tensor: torch.Tensor) -> None:
        """See ``Processes``."""


ALONE = Alone()


class DesertedError(SearchRLError):
    """Another process of the run has ended, so this one cannot go on."""


class Launched(Processes):
    """Processes that torchrun has started.

    Args:
        rank: of this one.
        size: how many there are.
        store: torchrun's, which outlives any of them.
    """

    def __init__(self, rank: int, size: int, store: Store) -> None:
        self._rank = rank
        self._size = size
        self._store = store
        self._speaks = False

    @property
    def rank(self) -> int:
        """See ``Processes``."""
        return self._rank

    @property
    def size(self) -> int:
        """See ``Processes``."""
        return self._size

    def gather(self, value: Any) -> list[Any]:
        """See ``Processes``."""
        import numpy as np
        import torch
        from torch import distributed

        message = torch.from_numpy(np.frombuffer(json.dumps(value).encode(), np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        own = torch.tensor([len(message)])
        self._wait(distributed.all_gather(lengths, own, async_op=True))
        longest = int(max(lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(message)] = message
        parts = [torch.zeros_like(padded) for _ in range(self.size)]
        self._wait(distributed.all_gather(parts, padded, async_op=True))
        return [
            json.loads(part[: int(length)].numpy().tobytes())
            for part, length in zip(parts, lengths, strict=True)
        ]

    def add(self, tensor: torch.Tensor) -> None:
        """See ``Processes``."""
        from torch import distributed

        work = distributed.all_reduce(tensor, async_op=True)
        if tensor.is_cuda:
            # Orders the streams; the host goes on.
            work.wait()
        else:
            self._wait(work)

    def fail_first(self) -> bool:
        """Note that this process has failed; whether none had before."""
        self._speaks = self._speaks or self._store.add(_FAILED, 1) == 1
        return self._speaks

    def another_failed(self) -> bool:
        """Whether another process has noted that it failed."""
        return not self._speaks and self._store.check([_FAILED])

    def _wait(self, work: Work) -> None:
        pause = _SHORTEST_LOOK
        try:
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_LOOK)
                if pause == _LONGEST_LOOK and self.another_failed():
                    raise DesertedError("another process of this run has failed")
            work.wait()
        except RuntimeError as error:
            raise DesertedError("another process of this run has ended without a word") from error


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun has started with this one; ``ALONE`` where it has started none.

    Where the block fails, one process says why; the others exit with its code in silence, those
    that a signal has ended too.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    processes = _join(size)
    try:
        yield processes
    except (Exception, KeyboardInterrupt) as error:
        _end(processes, error)
        raise
    from torch import distributed

    distributed.destroy_process_group()


def local_size() -> int:
    """Processes of this machine that torchrun has started; 1 where it has started none."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def first_before_others(processes: Processes) -> Iterator[None]:
    """Run a block in the first process, and in the others when it is through there."""
    if processes.rank > 0:
        processes.gather(None)
    yield
    if processes.rank == 0:
        processes.gather(None)


def from_first(processes: Processes, value: Any) -> Any:
    """What the first process has to say; a JSON value."""
    return processes.gather(value if processes.rank == 0 else None)[0]


def total(processes: Processes, parts: Mapping[str, float]) -> dict[str, float]:
    """Sums by name, over the processes in the order of their ranks: the same on all of them."""
    sums: dict[str, float] = {}
    for told in processes.gather(dict(parts)):
        for name, value in told.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def share(processes: Processes, items: Sequence[T], rank: int | None = None) -> Sequence[T]:
    """The items of one process: every so manieth, so that shares differ by one at most."""
    return items[processes.rank if rank is None else rank :: processes.size]


def _join(size: int) -> Launched:
    import torch
    from torch import distributed
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", world_size=size))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if local < gpus:
        # From here on "cuda" is this process's own GPU, whatever is loaded on it.
        torch.cuda.set_device(local)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        store=PrefixStore("training", store),
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    if rank > 0:
        # What one warns of, all would.
        logging.getLogger("searchrl").setLevel(logging.ERROR)
    return Launched(rank, size, PrefixStore("searchrl", store))


def _end(processes: Launched, error: BaseException) -> None:
    """Leave the word to the process that failed first.

    Raises:
        SystemExit: this is not the one.
    """
    # torchrun ends all as soon as one has ended; that is under way here.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if isinstance(error, KeyboardInterrupt):
        if processes.rank > 0 or processes.another_failed():
            raise SystemExit(130) from error
    elif not processes.fail_first() and isinstance(error, SearchRLError):
        time.sleep(_SECONDS_TO_SPEAK)
        raise SystemExit(error.exit_code) from error
