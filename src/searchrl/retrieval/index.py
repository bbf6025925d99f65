"""Index directories: built whole or not at all, and checked before they answer.

A directory holds the corpus, the parts that its kind names (``bm25``, ``dense``, or both), and a
manifest with checksums, settings and canaries. Whatever decides an answer is in the manifest and is
compared when the index is opened: analyzer, encoder, pooling, prefixes, number of passages.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from searchrl.data.corpus_store import CorpusStore, Progress, build_corpus_store, silent
from searchrl.data.passages import Passage, stream_corpus
from searchrl.data.storage import atomic_directory, read_manifest, verify_directory
from searchrl.errors import InputError, IntegrityError
from searchrl.retrieval.analysis import EnglishAnalyzer
from searchrl.retrieval.bm25 import Bm25Retriever, write_bm25
from searchrl.retrieval.canaries import draw_canaries, first_wrong
from searchrl.retrieval.dense import DenseRetriever
from searchrl.retrieval.dense_build import waiting_directory, write_dense
from searchrl.retrieval.encoder import Encoder, EncoderSettings, Runtime, open_encoder
from searchrl.retrieval.hybrid import HybridRetriever
from searchrl.retrieval.index_place import (
    FORMS,
    check_form,
    rebuild,
    refuse_absent,
    refuse_foreign,
)
from searchrl.retrieval.options import (
    Bm25Options,
    HybridOptions,
    IndexOptions,
    VectorOptions,
    WordOptions,
)
from searchrl.retrieval.protocol import IndexRetriever
from searchrl.retrieval.shards import Shard, Whole

_CORPUS, _WORDS, _VECTORS = "corpus", "bm25", "dense"
_HOLDERS = "holders.tmp"
_CPU = Runtime()


def build_index(
    corpus: Path | Iterable[Passage],
    out: Path,
    options: IndexOptions | None = None,
    vectors: Path | None = None,
    progress: Progress = silent,
    shard: Shard | None = None,
) -> IndexRetriever:
    """Write an index, as ``write_index`` does, and return the retriever over it."""
    options = options or Bm25Options()
    about, encoder = _write(corpus, out, options, vectors, progress, shard)
    return _assemble(out, about, encoder, _device(options))


def write_index(
    corpus: Path | Iterable[Passage],
    out: Path,
    options: IndexOptions | None = None,
    vectors: Path | None = None,
    progress: Progress = silent,
    shard: Shard | None = None,
) -> int:
    """Index a corpus into the directory ``out``.

    An index that stands at ``out`` is replaced when the new one is complete; anything else there
    is left alone. A build of vectors that was cut off goes on where it was. Memory does not grow
    with the corpus, but for a float a passage while the new index answers its canaries, and for
    codes and graphs of vectors, which are searched in memory too.

    Args:
        corpus: a corpus file, or passages.
        out: the directory to write.
        options: which kind and how; BM25 with Anserini's settings when left out.
        vectors: a ``.npy`` or faiss ``IndexFlat`` file with the vectors of the corpus, in its
            order, instead of encoding it.
        progress: told of passages done.
        shard: the part of the corpus to index; all of it when left out. ``vectors`` then holds
            those of all.

    Returns:
        How many passages it holds.

    Raises:
        InputError: an empty corpus, a malformed line, a repeated id, an encoder that cannot be
            loaded, a shard without passages or of a kind that is not merged, or an ``out`` that is
            something else than an index or cannot be written.
    """
    about, _ = _write(corpus, out, options or Bm25Options(), vectors, progress, shard)
    return int(about["passages"])


def _write(
    corpus: Path | Iterable[Passage],
    out: Path,
    options: IndexOptions,
    vectors: Path | None,
    progress: Progress,
    shard: Shard | None,
) -> tuple[dict[str, Any], Encoder | None]:
    """See ``write_index``; what the manifest says, and the encoder of queries."""
    _check_request(options, vectors, shard)
    refuse_foreign(out)
    about: dict[str, Any] = {"form": FORMS[options.kind], "kind": options.kind}
    waiting = waiting_directory(out)
    try:
        with atomic_directory(out, about) as directory, ExitStack() as files:
            spool = directory / _HOLDERS if options.kind == "bm25" else None
            whole = None if shard is None else files.enter_context(Whole(shard, spool, progress))
            store = _write_corpus(corpus, whole, directory / _CORPUS, progress)
            about["passages"] = len(store)
            if whole is not None:
                about["shard"] = whole.facts()
            if isinstance(options, WordOptions):
                about |= _write_words(store, options, directory, progress, whole)
            encoder = None
            if isinstance(options, VectorOptions):
                (directory / _VECTORS).mkdir()
                facts, encoder = write_dense(
                    store, options, vectors, directory / _VECTORS, waiting, progress, shard
                )
                about |= facts
            if isinstance(options, HybridOptions):
                about["fusion_depth"] = options.fusion_depth
                about["fusion_constant"] = options.fusion_constant
            # Five queries do not pay for a copy of all vectors in memory.
            built = _assemble(directory, about, encoder, device=None)
            about["canaries"] = draw_canaries(built, exact=encoder is None)
    except OSError as error:
        raise InputError(f"{out}: the index cannot be written: {error}") from error
    shutil.rmtree(waiting, ignore_errors=True)
    return about, encoder


def _check_request(options: IndexOptions, vectors: Path | None, shard: Shard | None) -> None:
    if shard is not None and isinstance(options, HybridOptions):
        raise InputError(
            f"--shard {shard}: places in a hybrid list are those of its shard, so that lists "
            "cannot be merged; build bm25 or dense"
        )
    if vectors is not None and not isinstance(options, VectorOptions):
        raise InputError(f"{vectors}: a {options.kind} index has no vectors; build dense or hybrid")


def open_index(
    path: Path,
    verify: bool = True,
    encoder: str | None = None,
    runtime: Runtime = _CPU,
    advance: Callable[[float], None] = lambda _: None,
) -> IndexRetriever:
    """Open an index directory.

    Args:
        path: the directory.
        verify: read every file against its checksum and ask the canaries first; without it, only
            sizes are compared, and an altered index may answer wrongly.
        encoder: where the encoder lies now, if it was moved since the index was built.
        runtime: where encoder and vectors are computed.
        advance: told which share of the files has been checked.

    Raises:
        InputError: there is no index at ``path``, or one of another program, or its encoder cannot
            be loaded or is another one.
        IntegrityError: the index is damaged, of another form, or answers its canaries differently.
    """
    about = read_about(path)
    verify_directory(path, contents=verify, advance=advance)
    if about.get("analyzer", EnglishAnalyzer.name) != EnglishAnalyzer.name:
        again = rebuild(about["kind"])
        raise IntegrityError(f"{path}: built with another analyzer; build it again: {again}")
    opened = None
    if "query_encoder" in about:
        settings = EncoderSettings.from_row(about["query_encoder"], path)
        opened = open_encoder(settings, runtime, path, encoder)
    retriever = _assemble(path, about, opened, runtime.device)
    if verify and (wrong := first_wrong(retriever, about["canaries"])):
        raise IntegrityError(f"{path}: {wrong}; build it again: {rebuild(about['kind'])}")
    return retriever


def read_about(path: Path) -> dict[str, Any]:
    """What an index directory says of itself, its files unread.

    Raises:
        InputError: there is no index at ``path``, or one of another program or form.
    """
    refuse_absent(path)
    about: dict[str, Any] = read_manifest(path)["about"]
    check_form(path, about)
    return about


def check_index(path: Path, encoder: str | None = None) -> dict[str, Any]:
    """Verify an index directory in full and describe it.

    Returns:
        ``path``, ``kind``, ``form``, the settings, and the numbers of ``passages``, ``files``,
        ``bytes`` and ``canaries``, all of which hold.

    Raises:
        InputError: as ``open_index``.
    """
    open_index(path, encoder=encoder)
    manifest = read_manifest(path)
    sizes = [entry["bytes"] for entry in manifest["files"].values()]
    counts = {"files": len(sizes), "bytes": sum(sizes)}
    about = manifest["about"]
    return {"path": str(path), **about, **counts, "canaries": len(about["canaries"])}


def check_options(path: Path, options: IndexOptions) -> None:
    """See that the index at ``path`` is what the options ask for.

    Raises:
        InputError: it is of another kind, or was built with other settings.
    """
    refuse_absent(path)
    found = _as_options(read_manifest(path)["about"])
    for name, wanted in options.identity().items():
        # None and auto leave the choice to the index; its encoder proves itself by its weights.
        if wanted in (None, "auto") or name not in found:
            continue
        if found[name] != wanted:
            raise InputError(
                f"{path}: was built with {name} = {found[name]}, and retriever.{name} is {wanted}; "
                "set the recipe to the index or build it again"
            )


def _as_options(about: dict[str, Any]) -> dict[str, Any]:
    """The facts of a manifest under the names of the options that they follow from."""
    facts = dict(about)
    query, passage = facts.pop("query_encoder", {}), facts.pop("passage_encoder", {})
    shared = {name: query[name] for name in ("pooling", "normalise", "max_length") if name in query}
    prefixes = {"query_prefix": query.get("prefix"), "passage_prefix": passage.get("prefix")}
    return {**facts, **shared, **prefixes}


def _write_corpus(
    corpus: Path | Iterable[Passage], whole: Whole | None, directory: Path, progress: Progress
) -> CorpusStore:
    if whole is None:
        return build_corpus_store(corpus, directory, progress)
    passages = stream_corpus(corpus) if isinstance(corpus, Path) else corpus
    return build_corpus_store(whole.part(passages), directory)


def _write_words(
    store: CorpusStore,
    options: WordOptions,
    directory: Path,
    progress: Progress,
    whole: Whole | None,
) -> dict[str, Any]:
    (directory / _WORDS).mkdir()
    statistics = None if whole is None else whole.statistics()
    write_bm25(store, directory / _WORDS, options.k1, options.b, progress, statistics)
    if whole is not None:
        shutil.rmtree(directory / _HOLDERS)
    return {"analyzer": EnglishAnalyzer.name, "k1": options.k1, "b": options.b}


def _assemble(
    directory: Path, about: dict[str, Any], encoder: Encoder | None, device: str | None
) -> IndexRetriever:
    """The retriever over a complete directory; vectors are scanned on disk without a device."""
    store = CorpusStore(directory / _CORPUS)
    parts: list[IndexRetriever] = []
    if "k1" in about:
        parts.append(Bm25Retriever.open(store, directory / _WORDS))
    if encoder is not None:
        compression = about["compression"]
        parts.append(DenseRetriever(store, encoder, directory / _VECTORS, compression, device))
    if len(parts) == 1:
        return parts[0]
    return HybridRetriever(parts, about["fusion_depth"], about["fusion_constant"])


def _device(options: IndexOptions) -> str:
    return options.device if isinstance(options, VectorOptions) else _CPU.device
