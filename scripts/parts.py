"""The parts of a long computation: one command each, run once, in the order of what needs what.

A part is finished when the file that its command writes last is there. What was killed goes on
where the command can, and is begun anew where it cannot, so that a script may be called again and
again until all of it is done.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchrl.errors import InputError


@dataclass(frozen=True, slots=True)
class Part:
    """One command of the whole.

    Attributes:
        out: the directory it writes.
        command: its arguments after ``python -m``.
        mark: what is in ``out`` once the part is finished.
        resumes: ``--resume`` makes it go on; or else it begins anew.
        after: what has to be finished before it.
    """

    out: Path
    command: tuple[str, ...]
    mark: str
    resumes: bool = False
    after: tuple[Part, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it need not be run."""
        return (self.out / self.mark).exists()

    @property
    def wave(self) -> int:
        """Parts of a wave need only those of waves before."""
        return 1 + max((part.wave for part in self.after), default=-1)


def run_all(parts: Iterable[Part], jobs: int) -> None:
    """Run what is not finished, with all that it needs, ``jobs`` at a time."""
    everything = list(dict.fromkeys(_with_needed(parts)))
    with ThreadPoolExecutor(jobs) as pool:
        for wave in range(1 + max(part.wave for part in everything)):
            list(pool.map(run, [part for part in everything if part.wave == wave]))


def run(part: Part) -> None:
    """Run a part unless it is finished."""
    if part.finished:
        return
    command = part.command
    if part.resumes and (part.out / "config.json").is_file():
        command = (*command, "--resume")
    elif part.out.exists():
        # Begun by this plan, killed, and of no use half done.
        shutil.rmtree(part.out)
    call(command)


def call(command: Sequence[str]) -> None:
    """Print a command and run it; what it fails with ends the whole."""
    print(f"python -m {shlex.join(command)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def call_all(commands: Sequence[Sequence[str]], jobs: int) -> None:
    """Commands that need nothing of one another."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(call, commands))


def pin(folder: Path, facts: Mapping[str, Any]) -> None:
    """Note what a directory's parts were made with.

    Raises:
        InputError: those of ``folder`` were made with something else, so they are not to be taken.
    """
    file = folder / "plan.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != facts:
        raise InputError(f"{file}: was begun with other options; choose another --out")


def _with_needed(parts: Iterable[Part]) -> Iterable[Part]:
    for part in parts:
        yield from _with_needed(part.after)
        yield part
