"""Files and directories that are either whole or absent, and can be checked later.

A write goes to a temporary name beside its target, is synced, and is renamed; the rename is the
commit. A directory gets a ``manifest.json`` with the SHA-256 and size of each of its files, and one
of its own, so a flipped byte is found when the directory is opened. A kill at any moment leaves the
old state: a directory is swapped with the new one in one step of the kernel. Where that step is
missing (other systems than Linux, some network drives), the old one waits as ``.NAME.old`` for the
instant between two renames, and is put back if the second fails. What a kill leaves of the new one
is deleted by the next write to the same target.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

from searchrl.errors import IntegrityError

MANIFEST = "manifest.json"
ARRAY_ERRORS = (OSError, ValueError, EOFError, SyntaxError, TokenError)
"""What numpy raises over a damaged ``.npy`` file, whose header it reads as Python's tokens."""
_CHUNK = 1 << 20


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing bytes; it appears, complete and synced, only on a clean exit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_write(path) as handle:
        handle.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def atomic_directory(target: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """Fill a temporary directory that replaces ``target`` on a clean exit, with a manifest.

    Args:
        target: where the directory appears. An existing one is replaced.
        about: facts kept under ``"about"`` in the manifest (kind, form, settings).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    with _new_directory(target) as temporary:
        try:
            yield temporary
            _write_manifest(temporary, about)
            temporary.chmod(0o755)
            for entry in (temporary, *temporary.rglob("*")):
                _sync(entry)
            _swap_in(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def verify_directory(
    directory: Path, contents: bool = True, advance: Callable[[float], None] = lambda _: None
) -> dict[str, Any]:
    """Check every file against the manifest and return its ``"about"`` part.

    Args:
        directory: what ``atomic_directory`` wrote.
        contents: compare checksums, which reads every byte; else sizes alone, in no time.
        advance: told after each file which share of all bytes has been checked.

    Raises:
        IntegrityError: the manifest is missing or malformed, or a file is missing or altered.
    """
    manifest = read_manifest(directory)
    total, done = sum(entry["bytes"] for entry in manifest["files"].values()), 0
    for name, expected in manifest["files"].items():
        file = directory / name
        if not file.is_file():
            raise IntegrityError(f"{file}: missing, but listed in {MANIFEST}; write it again")
        same = file.stat().st_size == expected["bytes"]
        if not same or (contents and sha256(file) != expected["sha256"]):
            raise IntegrityError(
                f"{file}: does not match its checksum in {MANIFEST}; it is damaged"
            )
        done += expected["bytes"]
        advance(done / max(1, total))
    about: dict[str, Any] = manifest["about"]
    return about


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read ``manifest.json`` without checking the files it lists."""
    path = directory / MANIFEST
    if not path.is_file():
        raise IntegrityError(f"{directory}: no {MANIFEST} there, so it is not a complete directory")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        about, files, seal = (manifest[key] for key in ("about", "files", "sha256"))
        if not isinstance(about, dict) or not isinstance(files, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path}: not a manifest of this program, or damaged") from error
    if seal != _seal(about, files):
        raise IntegrityError(f"{path}: does not match its own checksum; it is damaged")
    return manifest


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _new_directory(target: Path) -> Iterator[Path]:
    """A directory beside ``target``, held until the block ends: what nobody holds is left over."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        with ExitStack() as held:
            # Where there are no locks, nothing can be told to be left over either.
            with suppress(OSError):
                held.enter_context(_hold(made, fcntl.LOCK_EX))
            # Another process may have swept it away before it was held.
            if made.is_dir():
                yield made
                return


def _sweep(target: Path) -> None:
    """Delete what processes left that were killed as they wrote ``target``."""
    name = re.compile(re.escape(f".{target.name}.") + r"\w{8}\.tmp")
    for entry in target.parent.iterdir():
        if name.fullmatch(entry.name):
            with suppress(OSError), _hold(entry, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _hold(directory: Path, how: int) -> Iterator[None]:
    """Have a lock on a directory; OSError where it is no directory, or cannot be had."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def _write_manifest(directory: Path, about: Mapping[str, Any]) -> None:
    files = {
        file.relative_to(directory).as_posix(): {
            "sha256": sha256(file),
            "bytes": file.stat().st_size,
        }
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }
    manifest = {"about": dict(about), "files": files, "sha256": _seal(about, files)}
    text = json.dumps(manifest, ensure_ascii=False, indent=2)
    # UTF-8 has no half surrogate pairs; as Python escapes them, so does JSON.
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _seal(about: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """Hex digest of what the manifest says, whatever its white space."""
    return hashlib.sha256(json.dumps([dict(about), dict(files)]).encode()).hexdigest()


def _swap_in(temporary: Path, target: Path) -> None:
    """Put ``temporary`` in the place of ``target``; what stood there is deleted afterwards."""
    if not target.exists():
        temporary.rename(target)
        _sync(target.parent)
    elif _exchange(temporary, target):
        _sync(target.parent)
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        _swap_in_two_steps(temporary, target)


def _swap_in_two_steps(temporary: Path, target: Path) -> None:
    aside = target.with_name(f".{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step, with Linux's ``renameat2``; False where it is not to be had."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sync(path: Path) -> None:
    """Bring a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
