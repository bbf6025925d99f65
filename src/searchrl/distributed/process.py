"""A program and everything it started, run as one thing: its output in a file, ended together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_GRACE_SECONDS = 30.0
RAY_TOO_SLOW = "The current node timed out during startup"
"""How Ray puts it that a busy machine did not start it within its 30 seconds."""
_PR_SET_PDEATHSIG = 1


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a process group of its own; the group ends with the block.

    On Linux the program is also told to end when this process is killed without a word, so that
    nothing goes on writing what another process may then take up.

    Args:
        command: the program and its arguments.
        environment: variables over those of this process.
        log: gets standard output and error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        try:
            yield process
        finally:
            _end(process)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the program to end, then end whatever is left of its group."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_error(log: Path) -> str:
    """The last line of a log that reads like the name and text of an error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.strip() for line in lines if _is_error(line)]
    return errors[-1] if errors else "no error in it"


def _is_error(line: str) -> bool:
    name = line.strip().partition(":")[0]
    return name.endswith(("Error", "Exception", "Exit")) and " " not in name
