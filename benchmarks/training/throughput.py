"""Tokens a second of wall time, and how much of the device's speed the update reaches.

Meant for a GPU, where a CPU's seconds say little; it works on a CPU as well. The share of the peak
is 6 operations a weight and token, of all tokens that the episodes hold whether an engine computes
them once or several times, over what a large product of matrices does here in the same form.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

from benchmarks.training.measured import Run


def throughput_table(
    runs: Mapping[str, Sequence[Run]], weights: int, device: str, dtype: str
) -> str:
    """One line for each engine that is one process; medians."""
    peak = peak_operations(device, dtype)
    lines = [
        f"{device}, {dtype}: {peak / 1e12:.2f} T operations/s in a product of matrices",
        "",
        "| engine | sampled tokens / s | tokens updated / s | share of peak | device GiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in runs.items():
        rollout = [run.counts.said / sum(step.rollout for step in run.done) for run in found]
        update = [_tokens(run) / sum(step.update for step in run.done) for run in found]
        memory = max(step.device_bytes for run in found for step in run.done)
        share = 6 * weights * statistics.median(update) / peak
        lines.append(
            f"| {name} | {statistics.median(rollout):,.0f} | {statistics.median(update):,.0f} "
            f"| {share:.1%} | {memory / 2**30:.1f} |"
        )
    return "\n".join(lines)


def peak_operations(device: str, dtype: str) -> float:
    """Operations a second of a square product of matrices, the best of some tries."""
    import torch

    torch.set_num_threads(1)
    size = 8192 if device.startswith("cuda") else 1024
    square = torch.rand(size, size, device=device).to(getattr(torch, dtype))
    best = float("inf")
    for _ in range(8):
        started = _now(device)
        torch.mm(square, square)
        best = min(best, _now(device) - started)
    return 2 * size**3 / best


def _now(device: str) -> float:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def _tokens(run: Run) -> int:
    return run.counts.prompt + run.counts.told + run.counts.said
