"""One engine's program run to its end, with what each of its steps cost."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.training.engines.order import Order, StepDone
from benchmarks.training.process_tree import cpu_seconds, peak_bytes
from benchmarks.training.work import Counts
from searchrl.distributed.process import last_error
from searchrl.errors import InputError, SearchRLError

_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a span of an engine's life cost, in seconds, all its processes together."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        start_up: from the program's start to the end of its last step of warm-up.
        measured: the steps after it, together.
        done: these steps, by the engine's own account.
        peak: the most memory, see ``peak_bytes``.
    """

    start_up: Cost
    measured: Cost
    done: tuple[StepDone, ...]
    peak: int

    @property
    def counts(self) -> Counts:
        """The work of the measured steps."""
        columns = ("samples", "prompt", "told", "said")
        return Counts(**{name: sum(getattr(step, name) for step in self.done) for name in columns})

    @property
    def samples_per_cpu(self) -> float:
        """Episodes sampled and learned from in a CPU second."""
        return self.counts.samples / self.measured.cpu

    def share(self, part: str) -> float:
        """CPU seconds a step of ``rollout`` or ``update``, where the engine is one process."""
        return sum(float(getattr(step, f"{part}_cpu")) for step in self.done) / len(self.done)


@dataclass(frozen=True, slots=True)
class Program:
    """An engine's program, and who runs it."""

    module: str
    python: Path

    def run(self, order: Order, warm_up: int, folder: Path, core: int | None = None) -> Run:
        """Have an order done.

        Args:
            order: the order.
            warm_up: how many of its steps are not measured.
            folder: for the order and the program's log.
            core: the processor that all its processes stay on; any where left out.

        Raises:
            SearchRLError: the program failed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        order.write(folder / "order.json")
        command = [str(self.python), "-m", f"benchmarks.training.engines.{self.module}"]
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        log = folder / "log"
        begun = time.perf_counter()
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*command, str(folder / "order.json")],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **engine_environment()},
                cwd=_REPOSITORY,
            )
            try:
                run = _follow(process, begun, warm_up)
            finally:
                process.terminate()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
        if len(run.done) < order.steps - warm_up:
            raise SearchRLError(f"{self.module} did not do its steps: {last_error(log)}; see {log}")
        return run


def _follow(process: subprocess.Popen[bytes], begun: float, warm_up: int) -> Run:
    assert process.stdout is not None
    at, done, peak = [Cost(begun, 0.0)], [], 0
    for line in process.stdout:
        at.append(Cost(time.perf_counter(), cpu_seconds(process.pid)))
        done.append(StepDone(**json.loads(line)))
        peak = peak_bytes(process.pid)
    # The first mark is the start; a program that died early leaves fewer.
    ready = at[min(warm_up, len(at) - 1)]
    return Run(_between(at[0], ready), _between(ready, at[-1]), tuple(done[warm_up:]), peak)


def _between(start: Cost, end: Cost) -> Cost:
    return Cost(end.wall - start.wall, end.cpu - start.cpu)


def engine_environment() -> dict[str, str]:
    """What an engine's process is told: this project's code, one thread, no hub."""
    path = [str(_REPOSITORY / "src"), str(_REPOSITORY)]
    return {
        "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def versions(python: Path, packages: Sequence[str]) -> dict[str, str] | None:
    """The packages' versions in an interpreter's environment; ``None`` where one is not there.

    Raises:
        InputError: the interpreter is there and does not run.
    """
    if not python.exists():
        return None
    program = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    asked = subprocess.run([str(python), "-c", program, *packages], capture_output=True, text=True)
    if "PackageNotFoundError" in asked.stderr:
        return None
    if asked.returncode:
        raise InputError(f"{python}: {asked.stderr.strip()[-200:]}")
    found: dict[str, str] = json.loads(asked.stdout)
    return found
