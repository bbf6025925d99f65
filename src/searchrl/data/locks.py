"""A directory held by one process at a time; the lock ends with the process, killed or not."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from searchrl.errors import InputError


@contextmanager
def hold(directory: Path, lock: str, busy: str) -> Iterator[None]:
    """Hold a directory, made where there is none, until the block ends.

    Args:
        directory: what is held.
        lock: the name of its lock file.
        busy: what another process that has it is doing, for the message.

    Raises:
        InputError: another process has it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / lock).open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise InputError(f"{directory}: {holder} is {busy}") from error
        except OSError as error:
            raise InputError(
                f"{directory}: its file system has no locks ({error.strerror}); "
                "choose an --out on another"
            ) from error
        # The system frees the lock of a process that has ended, however it did. What it wrote
        # here stays, and is replaced by whoever holds the lock next.
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}\n")
        handle.flush()
        yield
