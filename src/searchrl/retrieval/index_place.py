"""What may stand at the path of an index: nothing, an index of ours, and never a user's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from searchrl.data.storage import MANIFEST, read_manifest
from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval.options import KINDS

FORMS = {"bm25": 4, "dense": 3, "hybrid": 4}
"""Of the files of each kind; an index of another form is built again."""
_VECTOR_FILES = (".index", ".npy", ".faiss")


def rebuild(kind: str = "bm25") -> str:
    """The command that builds an index of a kind."""
    encoder = "" if kind == "bm25" else " --encoder MODEL"
    return f"searchrl index build --kind {kind} --corpus CORPUS.jsonl --out DIRECTORY{encoder}"


def refuse_foreign(out: Path) -> None:
    """Refuse to replace what is not an index, or an index among other files.

    Raises:
        InputError: such a thing stands at ``out``.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise InputError(f"{out}: is there and is not a directory; choose another --out")
    if not any(out.iterdir()):
        return
    try:
        manifest = read_manifest(out)
    except IntegrityError as error:
        raise InputError(f"{out}: holds files and no index; choose another --out") from error
    if manifest["about"].get("kind") not in KINDS:
        raise InputError(f"{out}: holds something else than an index; choose another --out")
    present = {file.relative_to(out).as_posix() for file in out.rglob("*") if not file.is_dir()}
    if strangers := present - set(manifest["files"]) - {MANIFEST}:
        name = min(strangers)
        raise InputError(f"{out}: holds {name!r} beside the index; move it or choose another --out")


def refuse_absent(path: Path) -> None:
    """Refuse a path without an index of ours, and name the command that makes one.

    Raises:
        InputError: there is none.
    """
    if path.is_file() and path.suffix in _VECTOR_FILES:
        command = f"searchrl index convert --corpus CORPUS.jsonl --vectors {path} --encoder MODEL"
        raise InputError(f"{path}: holds vectors alone; make an index of them: {command} --out DIR")
    if not path.is_dir():
        raise InputError(f"{path}: no index directory there; build one: {rebuild()}")
    if not (path / MANIFEST).exists() and any(path.glob("segments_*")):
        raise InputError(f"{path}: is a Lucene (Pyserini) index; build ours instead: {rebuild()}")


def check_form(path: Path, about: dict[str, Any]) -> None:
    """Refuse an index of a kind or form that this version does not read.

    Raises:
        IntegrityError: it is of such a kind or form.
    """
    kind, form = about.get("kind"), about.get("form")
    if kind not in KINDS:
        raise IntegrityError(f"{path}: {kind!r} is no kind of index known here")
    if form != FORMS[kind]:
        raise IntegrityError(
            f"{path}: form {form!r}, this version reads form {FORMS[kind]};"
            f" build it again: {rebuild(kind)}"
        )
