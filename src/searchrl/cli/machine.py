"""How a command uses this machine: as many torch threads as there are free cores, and its memory.

On busy cores a second torch thread makes everything several times slower, so busy ones are left
alone.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_MEMORY = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_WATCH_SECONDS = 0.25


def use_machine(threads: int | None, processes: int = 1) -> int:
    """Set torch's threads to ``threads``, or to the cores that are free now; returns the number.

    Free cores are divided among as many ``processes`` as start on this machine at once.
    """
    import torch

    chosen = threads or max(1, free_cores() // processes)
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


def free_memory(device: str) -> int | None:
    """Bytes that can be had on a device, as in ``cpu`` or ``cuda:0``; ``None`` without it."""
    if device == "cpu":
        return min(_system_memory(), _container_memory())
    import torch

    try:
        place = torch.device(device)
        return torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else None
    except (RuntimeError, AssertionError):
        # What torch raises for a device of no known kind, and for one that is not there.
        return None


def _system_memory() -> int:
    if not _MEMORY.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":") for line in _MEMORY.read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


def _container_memory() -> int:
    """What is left of a container's limit; more than any machine has where there is none."""
    limit, used = _CONTROL_GROUP / "memory.max", _CONTROL_GROUP / "memory.current"
    if not limit.is_file() or (text := limit.read_text(encoding="ascii").strip()) == "max":
        return sys.maxsize
    return max(0, int(text) - int(used.read_text(encoding="ascii")))


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
