"""How a command uses this machine: as many torch threads as there are free cores.

On busy cores a second torch thread makes everything several times slower, so busy ones are left
alone.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_WATCH_SECONDS = 0.25


def use_machine(threads: int | None) -> int:
    """Set torch's threads to ``threads``, or to the cores that are free now; returns the number."""
    import torch

    chosen = threads or free_cores()
    torch.set_num_threads(chosen)
    return chosen


def free_cores() -> int:
    """Cores this process may use and nobody else is using right now; at least 1."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not cores or not _STAT.is_file():
        return os.cpu_count() or 1
    before = _busy_and_total(cores)
    time.sleep(_WATCH_SECONDS)
    after = _busy_and_total(cores)
    total = max(1, after[1] - before[1])
    busy = len(cores) * (after[0] - before[0]) / total
    return max(1, len(cores) - round(busy))


def _busy_and_total(cores: list[int]) -> tuple[int, int]:
    """Clock ticks that these cores were busy, and all their ticks, since the machine started."""
    busy = total = 0
    wanted = {f"cpu{core}" for core in cores}
    for line in _STAT.read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name in wanted:
            counts = [int(tick) for tick in ticks[:8]]
            idle = counts[3] + counts[4]
            total += sum(counts)
            busy += sum(counts) - idle
    return busy, total
