"""Waits until a Ray cluster has GPUs to spare, as a program of its own.

verl ends at once where GPUs are missing. After a machine has died that is the case until another
has taken its place, or until Ray has given back what the last attempt held. This process connects
to the cluster for no longer than that, so that the one that follows the run never holds Ray.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

import ray

_POLL_SECONDS = 1.0
_RESOURCES = ("GPU", "NPU")


def wait(count: int, seconds: float) -> float:
    """Wait for free GPUs of the cluster that ``RAY_ADDRESS`` names.

    Args:
        count: how many.
        seconds: how long, at most.

    Returns:
        How many there are.
    """
    ray.init(logging_level=logging.ERROR)
    deadline = time.monotonic() + seconds
    while True:
        free = ray.available_resources()
        found = float(max(free.get(name, 0.0) for name in _RESOURCES))
        if found >= count or time.monotonic() >= deadline:
            return found
        time.sleep(_POLL_SECONDS)


def main() -> None:
    """Exit with 1 and one line when the GPUs do not come."""
    parser = argparse.ArgumentParser(description="Wait until a Ray cluster has GPUs to spare.")
    parser.add_argument("count", type=int)
    parser.add_argument("seconds", type=float)
    asked = parser.parse_args()
    found = wait(asked.count, asked.seconds)
    if found < asked.count:
        sys.exit(
            f"MissingGpusError: {found:.0f} of {asked.count} GPUs are free after "
            f"{asked.seconds:.0f} s; start the machines that are missing, or raise "
            "verl.machine_seconds"
        )


if __name__ == "__main__":
    main()
