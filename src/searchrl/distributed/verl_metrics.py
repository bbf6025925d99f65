"""verl's log of a run in the terms of ``metrics.jsonl``.

verl's file logger writes ``{"step", "data"}`` a step; whole lines are read as they appear. Its own
numbers all stay in that file; the run's metrics hold those that the in-process trainer also has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_NAMES: Mapping[str, str] = {
    "critic/score/mean": "reward/mean",
    "actor/grad_norm": "grad_norm",
    "actor/entropy": "entropy",
    "actor/pg_loss": "policy_loss",
    "actor/pg_clipfrac": "clip_fraction",
    "actor/ppo_kl": "old_kl",
    "critic/vf_loss": "value_loss",
    "critic/grad_norm": "critic_grad_norm",
    "rollout_corr/k3_kl": "mismatch_kl",
    "actor/reward_kl_penalty": "reference_kl",
    "timing_s/gen": "seconds/rollout",
}
_UPDATE = ("timing_s/update_actor", "timing_s/update_critic")
_OURS = ("episodes/", "groups/", "reward/")


class VerlLog:
    """Reads a log that is being written.

    Args:
        path: of the log; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The steps that were finished since the last call, with the run's metrics of each."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as handle:
            handle.seek(self._offset)
            for line in handle:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                row = json.loads(line)
                yield int(row["step"]), run_metrics(row["data"])


def run_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one step of verl, by our names."""
    numbers = {name: float(v) for name, v in values.items() if isinstance(v, int | float)}
    metrics = {ours: numbers[name] for name, ours in _NAMES.items() if name in numbers}
    metrics |= {name: value for name, value in numbers.items() if name.startswith(_OURS)}
    if "grad_norm" in metrics:
        # verl leaves out an update whose gradient is not finite, as is done in process.
        metrics["skipped_updates"] = float(not math.isfinite(metrics["grad_norm"]))
    if update := [numbers[name] for name in _UPDATE if name in numbers]:
        metrics["seconds/update"] = sum(update)
    return metrics
