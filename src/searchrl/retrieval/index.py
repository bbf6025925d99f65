"""Index directories: built whole or not at all, and checked before they answer.

A directory holds arrays, passages, and a manifest with checksums. The manifest also keeps canaries:
a few queries with the passage each found first when the index was built. A library or an analyzer
that has changed since then shows itself there, where a checksum cannot see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from searchrl.data.passages import Passage
from searchrl.data.storage import MANIFEST, atomic_directory, read_manifest, verify_directory
from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval.bm25 import Bm25Retriever

FORM = 1
KINDS = ("bm25",)
_CANARIES = 5
_CANARY_LENGTH = 80
_REBUILD = "searchrl index build --kind bm25 --corpus CORPUS.jsonl --out DIRECTORY"


def build_index(
    corpus: Iterable[Passage], out: Path, kind: str = "bm25", **settings: float
) -> Bm25Retriever:
    """Index a corpus into the directory ``out`` and return the retriever over it.

    An index that stands at ``out`` is replaced when the new one is complete; anything else there
    is left alone.

    Args:
        corpus: the passages.
        out: the directory to write.
        kind: one of ``KINDS``.
        settings: ``k1`` and ``b``.

    Raises:
        InputError: an unknown kind or setting, an empty corpus, a repeated id, or an ``out`` that
            is something else than an index or cannot be written.
    """
    if kind not in KINDS:
        raise InputError(f"index kind {kind!r} is not known; known kinds: {', '.join(KINDS)}")
    if unknown := set(settings) - {"k1", "b"}:
        raise InputError(f"a bm25 index has no setting {sorted(unknown)[0]!r}; it has k1 and b")
    _refuse_foreign(out)
    retriever = Bm25Retriever(corpus, **settings)
    about = {
        "form": FORM,
        "kind": kind,
        **retriever.settings,
        "passages": len(retriever),
        "canaries": _draw_canaries(retriever),
    }
    try:
        with atomic_directory(out, about) as directory:
            retriever.save(directory)
    except OSError as error:
        raise InputError(f"{out}: the index cannot be written: {error}") from error
    return retriever


def open_index(
    path: Path, verify: bool = True, advance: Callable[[float], None] = lambda _: None
) -> Bm25Retriever:
    """Open an index directory.

    Args:
        path: the directory.
        verify: read every file against its checksum and ask the canaries first; without it, an
            altered index may answer wrongly.
        advance: told which share of the files has been read against its checksum.

    Raises:
        InputError: there is no index at ``path``, or one of another program.
        IntegrityError: the index is damaged, of another form, or answers its canaries differently.
    """
    about = read_about(path)
    if verify:
        verify_directory(path, advance)
    retriever = Bm25Retriever.load(path)
    if retriever.settings["analyzer"] != about.get("analyzer"):
        raise IntegrityError(f"{path}: built with another analyzer; build it again: {_REBUILD}")
    if verify:
        _ask_canaries(path, about, retriever)
    return retriever


def read_about(path: Path) -> dict[str, Any]:
    """What an index directory says of itself, its files unread.

    Raises:
        InputError: there is no index at ``path``, or one of another program or form.
    """
    _refuse_absent(path)
    about: dict[str, Any] = read_manifest(path)["about"]
    _check_form(path, about)
    return about


def check_index(path: Path) -> dict[str, Any]:
    """Verify an index directory in full and describe it.

    Returns:
        ``path``, ``kind``, ``form``, the settings, and the numbers of ``passages``, ``files``,
        ``bytes`` and ``canaries``, all of which hold.

    Raises:
        InputError: as ``open_index``.
    """
    open_index(path)
    manifest = read_manifest(path)
    sizes = [entry["bytes"] for entry in manifest["files"].values()]
    counts = {"files": len(sizes), "bytes": sum(sizes)}
    about = manifest["about"]
    return {"path": str(path), **about, **counts, "canaries": len(about["canaries"])}


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace what is not an index, or an index among other files."""
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


def _refuse_absent(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"{path}: no index directory there; build one: {_REBUILD}")
    if not (path / MANIFEST).exists() and any(path.glob("segments_*")):
        raise InputError(f"{path}: is a Lucene (Pyserini) index; build ours instead: {_REBUILD}")


def _check_form(path: Path, about: dict[str, Any]) -> None:
    if about.get("kind") not in KINDS:
        raise IntegrityError(f"{path}: {about.get('kind')!r} is no kind of index known here")
    if about.get("form") != FORM:
        raise IntegrityError(
            f"{path}: form {about.get('form')!r}, this version reads form {FORM};"
            f" build it again: {_REBUILD}"
        )


def _draw_canaries(retriever: Bm25Retriever) -> list[dict[str, str]]:
    """Queries from passages spread evenly over the index, with the passage each finds first."""
    step = max(1, len(retriever) // _CANARIES)
    queries = [_canary(passage) for passage in retriever.passages[::step][:_CANARIES]]
    return [{"query": query, "top": retriever.top(query, 1)[0].passage.id} for query in queries]


def _canary(passage: Passage) -> str:
    """The passage's title, or the start of its text, without what a manifest cannot hold."""
    text = " ".join((passage.title.strip() or passage.text).split())[:_CANARY_LENGTH]
    return "".join(character for character in text if character.isprintable())


def _ask_canaries(path: Path, about: dict[str, Any], retriever: Bm25Retriever) -> None:
    for canary in about["canaries"]:
        found = retriever.top(canary["query"], 1)[0].passage.id
        if found != canary["top"]:
            raise IntegrityError(
                f"{path}: {canary['query']!r} now finds {found!r} first, not {canary['top']!r};"
                f" build it again: {_REBUILD}"
            )
