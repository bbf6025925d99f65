"""The vector part of an index under construction, which may take days and be interrupted.

Finished shards wait in a directory beside the index. A build with the same corpus, encoder and
number form goes on after them; one with others is refused, so no hour of work is lost to a typo.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from searchrl.data.corpus_store import CorpusStore, Progress
from searchrl.data.storage import write_json
from searchrl.errors import InputError
from searchrl.retrieval.compressed import write_compressed
from searchrl.retrieval.dense import chosen_compression
from searchrl.retrieval.encoder import Encoder, load_encoder
from searchrl.retrieval.options import VectorOptions
from searchrl.retrieval.shards import Shard
from searchrl.retrieval.sources import encoded, from_file
from searchrl.retrieval.vectors import SHARD_ROWS, Vectors, write_vectors

_KEY = "build.json"


def waiting_directory(out: Path) -> Path:
    """Where the shards of an index at ``out`` wait until it is complete."""
    return out.with_name(f".{out.name}.building")


def write_dense(
    store: CorpusStore,
    options: VectorOptions,
    file: Path | None,
    directory: Path,
    waiting: Path,
    progress: Progress,
    shard: Shard | None = None,
) -> tuple[dict[str, Any], Encoder]:
    """Fill ``directory`` with the vectors of a corpus and what searches them.

    Args:
        store: the corpus.
        options: what is asked for.
        file: vectors made elsewhere, instead of encoding.
        directory: empty; of the index under construction.
        waiting: see ``waiting_directory``; kept, for the caller to delete when all is done.
        progress: told of passages done.
        shard: the part of another corpus that ``store`` is; ``file`` holds the vectors of all.

    Returns:
        What the manifest shall say, and the encoder of queries.

    Raises:
        InputError: as ``load_encoder``, ``from_file`` and ``write_compressed``, or ``waiting``
            holds another build.
    """
    query, passage = _encoders(options)
    source = (
        encoded(store, passage, progress)
        if file is None
        else from_file(file, store, passage, progress, shard)
    )
    made_from = {
        "corpus": store.digest,
        "encoder": passage.settings.to_row(),
        "vectors": None if file is None else [str(file), file.stat().st_size],
        "vector_dtype": options.vector_dtype,
        "shard_rows": SHARD_ROWS,
    }
    _claim(waiting, made_from)
    write_vectors(source, len(store), waiting, options.vector_dtype)
    _link(waiting, directory)
    vectors = Vectors(directory)
    compression = chosen_compression(options, len(vectors), vectors.dimension)
    if compression != "none":
        progress(f"building {compression}", 0, len(store))
        write_compressed(vectors, compression, directory)
    about = {
        "query_encoder": query.settings.to_row(),
        "passage_encoder": passage.settings.to_row(),
        "vector_dtype": options.vector_dtype,
        "compression": compression,
    }
    return about, query


def _encoders(options: VectorOptions) -> tuple[Encoder, Encoder]:
    """Of queries and of passages."""
    query = load_encoder(options, "query")
    passage = load_encoder(options, "passage", like=query)
    if query.settings.dimension != passage.settings.dimension:
        raise InputError(
            f"{query.settings.model} and {passage.settings.model} differ in dimension; "
            "they are no pair of encoders"
        )
    return query, passage


def _claim(waiting: Path, made_from: dict[str, Any]) -> None:
    """Take up the build that waits, or start one."""
    key = waiting / _KEY
    if not key.is_file():
        waiting.mkdir(parents=True, exist_ok=True)
        write_json(key, made_from)
        return
    try:
        found = json.loads(key.read_bytes())
    except ValueError as error:
        raise InputError(f"{key}: damaged; delete {waiting}") from error
    for name, wanted in made_from.items():
        if found.get(name) != wanted:
            raise InputError(
                f"{waiting}: holds an unfinished build from another {name}; finish that one with "
                "the command it was started with, or delete the directory"
            )


def _link(waiting: Path, directory: Path) -> None:
    """Put the shards into the index without copying them, where the file system can."""
    for shard in sorted(waiting.glob("vectors-*.npy")):
        try:
            os.link(shard, directory / shard.name)
        except OSError:
            shutil.copyfile(shard, directory / shard.name)
