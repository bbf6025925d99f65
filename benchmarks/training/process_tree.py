"""CPU seconds and memory of a process and everything it started, from Linux's ``/proc``.

A child that has ended counts from the moment its parent has waited for it, by the parent's own
account, so nothing is lost but what an orphan did.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def cpu_seconds(root: int) -> float:
    """User and system time of a process, its descendants, and those of them that ended."""
    return sum(sum(fields[11:15]) for fields in _tree(root).values()) / _TICKS


def peak_bytes(root: int) -> int:
    """The most memory that each living process of the tree has held, together.

    What processes share counts for each of them.
    """
    return sum(_peak(process) for process in _tree(root))


def _tree(root: int) -> dict[int, list[int]]:
    """The numbers of ``stat``, from the parent's on, of a process and its descendants."""
    stats = dict(_stats())
    children: dict[int, list[int]] = {}
    for process, fields in stats.items():
        children.setdefault(fields[1], []).append(process)
    found, ahead = {}, [root]
    while ahead:
        process = ahead.pop()
        if process in stats:
            found[process] = stats[process]
            ahead += children.get(process, [])
    return found


def _stats() -> Iterator[tuple[int, list[int]]]:
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "stat").read_text()
        except OSError:  # It has ended since.
            continue
        # The name, in brackets, may hold anything; the state behind it is a letter.
        rest = line.rpartition(")")[2].split()
        yield int(entry.name), [0, *(int(value) for value in rest[1:])]


def _peak(process: int) -> int:
    try:
        status = (_PROC / str(process) / "status").read_text()
    except OSError:  # It has ended since.
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
