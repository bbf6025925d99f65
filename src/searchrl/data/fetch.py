"""Fetching a published dataset: whole and checked, or not there.

Downloads go to ``.downloads`` beside the target. The hub's library asks again when a connection
breaks; after an interruption, files that were whole are not fetched again. When all of a dataset's
files are there and, where the hub names a SHA-256, match it, the directory appears in one step,
with a manifest that says what was fetched from where. Questions are written as question lines,
whatever form they came in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from searchrl.data.catalog import CATALOG, Entry
from searchrl.data.forms import read_dataset
from searchrl.data.jsonl import write_jsonl
from searchrl.data.storage import atomic_directory, atomic_write, sha256
from searchrl.errors import InfrastructureError, InputError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

_CHUNK = 1 << 20
_SHA256_DIGITS = 64
_SECONDS = 30.0

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file came from: its address or repository, the exact version, and its digest."""

    source: str
    file: str
    revision: str
    sha256: str


class Source(Protocol):
    """Something that files are fetched from."""

    def fetch(self, entry: Entry, file: str, downloads: Path) -> tuple[Path, Origin]:
        """Bring one file of a dataset below ``downloads``.

        Raises:
            InfrastructureError: it could not be had, or not whole.
            IntegrityError: it is not what the source says it is.
        """
        ...


def fetch_dataset(
    name: str,
    out: Path,
    splits: Sequence[str] = (),
    source: Source | None = None,
    announce: Announce = lambda _: None,
) -> Path:
    """Fetch a dataset of the catalog to ``out/name``; returns that directory.

    Args:
        name: its name in the catalog.
        out: where its directory goes; one that is there is replaced.
        splits: those to fetch; all when empty.
        source: stands in for the hub and the web in tests.
        announce: told what is being fetched.

    Raises:
        InputError: an unknown name or split.
        InfrastructureError: a file could not be fetched; nothing appears at the target.
    """
    entry = catalog_entry(name)
    wanted = _wanted(entry, splits)
    source = source or (WebSource() if entry.url else HubSource())
    downloads, target = out / ".downloads" / name, out / name
    fetched: dict[str, list[tuple[Path, Origin]]] = {}
    for split in wanted:
        for file in entry.splits[split]:
            announce(f"{name}: {file}")
            fetched.setdefault(split, []).append(source.fetch(entry, file, downloads))
    origins = [asdict(origin) for parts in fetched.values() for _, origin in parts]
    about = {"dataset": name, "evaluation": entry.evaluation, "origins": origins}
    with atomic_directory(target, about) as directory:
        for split, parts in fetched.items():
            _place(entry, split, [path for path, _ in parts], directory)
    shutil.rmtree(downloads, ignore_errors=True)
    return target


def catalog_entry(name: str) -> Entry:
    """The catalog's entry of a name.

    Raises:
        InputError: there is none.
    """
    if name not in CATALOG:
        raise InputError(f"dataset {name!r} is not known; there are {', '.join(CATALOG)}")
    return CATALOG[name]


def _wanted(entry: Entry, splits: Sequence[str]) -> Sequence[str]:
    for split in splits:
        if split not in entry.splits:
            raise InputError(
                f"dataset {entry.name!r} has no split {split!r}; there are "
                f"{', '.join(entry.splits)}"
            )
    return splits or list(entry.splits)


def _place(entry: Entry, split: str, parts: Sequence[Path], directory: Path) -> None:
    """Put one split of a dataset into its directory."""
    if entry.kind == "questions":
        [file] = parts
        named = entry.config if entry.url else None
        rows = (question.to_row() for question in read_dataset(file, named))
        source = {} if entry.url else {"source": entry.name}
        write_jsonl(directory / f"{split}.jsonl", (row | source for row in rows))
        return
    with (directory / split).open("wb") as joined:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, joined, _CHUNK)
            part.unlink()


class HubSource:
    """The Hugging Face hub, through its own library.

    Args:
        endpoint: another server with the same interface.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    def fetch(self, entry: Entry, file: str, downloads: Path) -> tuple[Path, Origin]:
        """Bring one file of a dataset below ``downloads``."""
        try:
            import huggingface_hub as hub
        except ImportError as error:
            raise InputError(
                "datasets on the hub need a package: pip install 'searchrl[hub]'"
            ) from error
        with _failing_as_a_service(f"{entry.repository}: {file}"):
            url = hub.hf_hub_url(
                entry.repository, file, repo_type="dataset", endpoint=self._endpoint
            )
            facts = hub.get_hf_file_metadata(url, endpoint=self._endpoint)
            path = hub.hf_hub_download(
                entry.repository,
                file,
                repo_type="dataset",
                revision=facts.commit_hash,
                local_dir=downloads,
                endpoint=self._endpoint,
            )
        named = facts.etag if facts.etag and len(facts.etag) == _SHA256_DIGITS else None
        digest = _checked(Path(path), named)
        return Path(path), Origin(entry.repository, file, str(facts.commit_hash), digest)


class WebSource:
    """A plain file on the web.

    Args:
        transport: stands in for the network in tests.
    """

    def __init__(self, transport: httpx2.BaseTransport | None = None) -> None:
        self._transport = transport

    def fetch(self, entry: Entry, file: str, downloads: Path) -> tuple[Path, Origin]:
        """Bring the file of a dataset below ``downloads``."""
        import httpx2

        path = downloads / file
        with (
            _failing_as_a_service(entry.url),
            httpx2.Client(
                transport=self._transport, timeout=httpx2.Timeout(_SECONDS), follow_redirects=True
            ) as client,
            client.stream("GET", entry.url, timeout=client.timeout) as response,
            atomic_write(path) as handle,
        ):
            response.raise_for_status()
            for piece in response.iter_bytes():
                handle.write(piece)
        return path, Origin(entry.url, file, entry.url.split("/")[-2], sha256(path))


def _checked(path: Path, named: str | None) -> str:
    """The file's digest, which has to be the one its source names; another file is deleted."""
    digest = sha256(path)
    if named is not None and named != digest:
        path.unlink()
        raise IntegrityError(f"{path}: is not the file that its source describes; fetch it again")
    return digest


@contextmanager
def _failing_as_a_service(what: str) -> Iterator[Any]:
    """Turn every way in which a download fails into one error in one line."""
    import httpx2

    try:
        yield
    except (OSError, httpx2.HTTPError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InfrastructureError(f"{what}: cannot be fetched: {reason}") from error
