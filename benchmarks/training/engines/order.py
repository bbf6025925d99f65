"""What an engine is asked to do, and what it says while it does it.

An engine is a program: ``python -m benchmarks.training.engines.NAME ORDER.json``. It writes one
JSON line to standard output when a step is done, at once, so that who started it can note the time
and the CPU seconds of all its processes. Nothing else may go there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks.training.work import Counts, Script, Work, counts_of, digest_of, step_of
from searchrl.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class Order:
    """What to do.

    Attributes:
        work: one step's work.
        model: a checkpoint.
        steps: how many, those of the warm-up included.
        seed: of the work and of all draws.
        learning_rate: AdamW's, of the policy and of a critic.
        device: where.
        dtype: the checkpoint's; below float32 the update keeps weights in float32.
        settings: what is different about this variant of the engine.
    """

    work: Work
    model: str
    steps: int
    seed: int
    learning_rate: float
    device: str = "cpu"
    dtype: str = "float32"
    settings: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> Order:
        """The order in a file."""
        row = json.loads(path.read_text())
        return cls(**{**row, "work": Work(**row["work"])})

    def write(self, path: Path) -> None:
        """Put it in a file."""
        path.write_text(json.dumps(asdict(self)))

    def setting(self, name: str, otherwise: Any) -> Any:
        """What the variant says, or what the engine does by itself."""
        return (self.settings or {}).get(name, otherwise)

    def scripts(self, step: int) -> list[Script]:
        """The episodes of a step."""
        return step_of(self.work, self.seed, step)

    def draw(self, script: Script) -> int:
        """The seed of an episode's draws, where an engine takes one."""
        return derive_seed(self.seed, "draw", script.question, script.sample)


@dataclass(frozen=True, slots=True)
class StepDone:
    """One step.

    Attributes:
        samples: episodes sampled and learned from.
        prompt: tokens of their prompts.
        told: tokens of what they were told.
        said: tokens that were sampled and learned from.
        reward: their mean reward.
        rollout: seconds of wall time, where the engine can tell.
        update: likewise.
        rollout_cpu: CPU seconds of this process, where the engine is one process.
        update_cpu: likewise.
        device_bytes: the most that the device's memory held.
    """

    samples: int
    prompt: int
    told: int
    said: int
    reward: float
    rollout: float = 0.0
    update: float = 0.0
    rollout_cpu: float = 0.0
    update_cpu: float = 0.0
    device_bytes: int = 0

    @property
    def counts(self) -> Counts:
        """How much was done."""
        return Counts(self.samples, self.prompt, self.told, self.said)


def expected(order: Order, steps: Sequence[int]) -> tuple[Counts, str]:
    """What the steps come to, and which work it is."""
    scripts = [script for step in steps for script in order.scripts(step)]
    return counts_of(scripts), digest_of(scripts)


def claim_stdout() -> TextIO:
    """A handle on standard output; whatever libraries print goes to standard error from now on."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


def tell(done: StepDone, out: TextIO) -> None:
    """Say that a step is done."""
    out.write(json.dumps(asdict(done)) + "\n")
    out.flush()
