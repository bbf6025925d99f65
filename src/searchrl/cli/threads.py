"""How many torch threads to use: on busy cores, more of them are several times slower than one."""

from __future__ import annotations

import os


def set_threads(wanted: int | None) -> int:
    """Set torch's threads to ``wanted``, or to the cores that are free now; returns the number."""
    import torch

    threads = wanted or free_cores()
    torch.set_num_threads(threads)
    return threads


def free_cores() -> int:
    """Cores this process may use, less the load of the last minute; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, round(allowed - os.getloadavg()[0])))
