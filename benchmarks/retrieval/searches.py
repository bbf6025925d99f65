"""The searches that the servers of ``serve_load`` hold: one corpus, ours and the others' engines.

``null`` finds the same passages for every query, which leaves the server alone. ``flat`` scans all
vectors for the vector of a query, which a generator draws from the query at hardly any cost;
``encoder`` does so with the vector of a real encoder, over vectors of random direction, since the
work does not depend on what they mean. ``bm25`` searches by words.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.retrieval.scale import built_index, corpus_file, index_folder
from benchmarks.retrieval.word_engines import ENGINES, Ask
from benchmarks.retrieval.zipf import passages
from searchrl.data.corpus_store import CorpusStore
from searchrl.retrieval.bm25 import Bm25Retriever
from searchrl.retrieval.dense import DenseRetriever
from searchrl.retrieval.encoder import EncoderSettings, Runtime, load_encoder, open_encoder
from searchrl.retrieval.options import DenseOptions
from searchrl.retrieval.protocol import IndexRetriever, Ranking, Retriever
from searchrl.retrieval.vectors import write_vectors

SEARCHES = ("null", "flat", "encoder", "bm25")
TOPK = 3
_NO_SETTINGS = EncoderSettings("drawn", "", "mean", True, 256, 0, "")
_DIMENSIONS = {"flat": 768, "encoder": 384}
Found = tuple[list[list[dict[str, Any]]], list[list[float]]]
"""Documents and scores, a list for each query."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a server is to hold.

    Attributes:
        search: one of ``SEARCHES``.
        passages: size of the corpus.
        data: where corpora and indexes are kept from one run to the next.
        encoder: the real encoder, for the search of that name.
    """

    search: str
    passages: int
    data: Path
    encoder: str | None = None

    @property
    def corpus(self) -> Path:
        """The corpus in Search-R1's form."""
        return corpus_file(self.passages, self.data)

    @property
    def store(self) -> Path:
        """Our corpus store, and our BM25 index beside it."""
        return index_folder("words", "ours", self.passages, self.data) / "store"

    @property
    def vectors(self) -> Path:
        """The vectors of ``flat`` or ``encoder``."""
        return self.data / f"zipf-{self.passages}.vectors-{_DIMENSIONS[self.search]}"


class DrawnEncoder:
    """Draws the vector of a query from a generator that the query seeds."""

    def __init__(self, dimension: int) -> None:
        self.settings = replace(_NO_SETTINGS, dimension=dimension)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of length 1."""
        seeds = [zlib.crc32(text.encode()) for text in texts]
        return np.stack([_directions(seed, 1, self.settings.dimension)[0] for seed in seeds])


class NullSearch(IndexRetriever):
    """Finds the same passages for every query."""

    def __init__(self) -> None:
        self.corpus = list(passages(TOPK))
        self._ranking = Ranking(np.arange(TOPK), np.ones(TOPK))

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """See ``IndexRetriever.rank``."""
        return [self._ranking] * len(queries)


def prepare(setting: Setting, words: str) -> None:
    """Make what the searches open, where it is not there yet."""
    built_index("words", "ours", setting.passages, setting.data)
    if setting.search == "bm25":
        built_index("words", words, setting.passages, setting.data)
    if setting.search in _DIMENSIONS and not setting.vectors.is_dir():
        setting.vectors.mkdir()
        dimension = _DIMENSIONS[setting.search]

        def source(start: int, stop: int) -> npt.NDArray[np.float32]:
            return _directions(start, stop - start, dimension)

        write_vectors(source, setting.passages, setting.vectors, "float32")


def open_ours(setting: Setting) -> Retriever:
    """Our retriever."""
    if setting.search == "null":
        return NullSearch()
    store = CorpusStore(setting.store)
    if setting.search == "bm25":
        return Bm25Retriever.open(store, setting.store.with_name("words"))
    encoder: Any = DrawnEncoder(_DIMENSIONS["flat"])
    if setting.search == "encoder":
        settings = load_encoder(DenseOptions(encoder=_named(setting)), "query").settings
        # As a server opens it, which is free to choose the number form.
        encoder = open_encoder(settings, Runtime(dtype="auto"), setting.vectors)
    return DenseRetriever(store, encoder, setting.vectors)


class Engine(Protocol):
    """What a server in Search-R1's manner asks."""

    def batch_search(self, queries: Sequence[str], k: int) -> Found:
        """Documents and scores, a list for each query."""
        ...


class NullEngine:
    """Finds the first rows for every query."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def batch_search(self, queries: Sequence[str], k: int) -> Found:
        """See ``Engine``."""
        documents = [[self._rows[row] for row in range(k)] for _ in queries]
        return documents, [[1.0] * k for _ in queries]


class PlainEncoder:
    """An encoder in Search-R1's manner: one padded batch a request, pooled by the mean."""

    def __init__(self, model: str, dtype: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._network = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of length 1."""
        import torch

        with torch.no_grad():
            inputs = self._tokenizer(
                list(texts), max_length=256, padding=True, truncation=True, return_tensors="pt"
            )
            hidden_BTD = self._network(**inputs, return_dict=True).last_hidden_state
            mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
            pooled_BD = (hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
            vectors_BD = torch.nn.functional.normalize(pooled_BD, dim=-1).float().numpy()
        return np.ascontiguousarray(vectors_BD)


class FlatEngine:
    """FAISS's flat index behind an encoder, one call of each for a request."""

    def __init__(self, setting: Setting, dtype: str, rows: Sequence[dict[str, Any]]) -> None:
        import faiss

        dimension = _DIMENSIONS[setting.search]
        # From 1.14.2 on, batches below this many numbers are scanned query by query.
        faiss.cvar.distance_compute_blas_threshold = 3 * dimension
        self._rows = rows
        self._encoder = (
            PlainEncoder(_named(setting), dtype)
            if setting.search == "encoder"
            else DrawnEncoder(dimension)
        )
        self._index = faiss.IndexFlatIP(dimension)
        for shard in sorted(setting.vectors.glob("*.npy")):
            self._index.add(np.load(shard))

    def batch_search(self, queries: Sequence[str], k: int) -> Found:
        """See ``Engine``."""
        scores, found = self._index.search(self._encoder.encode(queries), k)
        return [[self._rows[row] for row in rows] for rows in found.tolist()], scores.tolist()


class WordsEngine:
    """An engine of words, one query after the other."""

    def __init__(self, ask: Ask, rows: Sequence[dict[str, Any]]) -> None:
        self._ask = ask
        self._rows = rows

    def batch_search(self, queries: Sequence[str], k: int) -> Found:
        """See ``Engine``."""
        found = [self._ask(query, k) for query in queries]
        documents = [[self._rows[int(name)] for name in names] for names, _ in found]
        return documents, [list(scores) for _, scores in found]


def open_theirs(setting: Setting, words: str, dtype: str) -> Engine:
    """The engine of a server in Search-R1's manner.

    Args:
        setting: what it holds.
        words: the engine of ``bm25``, ``pyserini`` or ``bm25s``.
        dtype: number form of the weights of ``encoder``.
    """
    rows = open_rows(setting.corpus)
    if setting.search == "bm25":
        folder = index_folder("words", words, setting.passages, setting.data)
        return WordsEngine(ENGINES[words][1](folder), rows)
    return NullEngine(rows) if setting.search == "null" else FlatEngine(setting, dtype, rows)


def open_rows(corpus: Path) -> Sequence[dict[str, Any]]:
    """The corpus as Search-R1 holds it, in ``datasets``; in memory where that is not installed."""
    try:
        import datasets
    except ImportError:
        return list(_rows(corpus))
    loaded = datasets.load_dataset("json", data_files=str(corpus), split="train")
    return loaded  # type: ignore[no-any-return]


def _named(setting: Setting) -> str:
    assert setting.encoder is not None, "the search encoder needs --encoder"
    return setting.encoder


def _rows(corpus: Path) -> Iterator[dict[str, Any]]:
    with corpus.open("rb") as lines:
        yield from map(json.loads, lines)


def _directions(seed: int, count: int, dimension: int) -> npt.NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal((count, dimension), np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn
