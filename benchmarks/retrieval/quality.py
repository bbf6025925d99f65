"""Retrieval quality side by side: words, vectors, both, and reordered, in one table.

    python -m benchmarks.retrieval.quality --encoder MODEL \
        --set nfcorpus corpus.jsonl queries.jsonl qrels/test.tsv \
        --run nfcorpus nfcorpus.bm25.anserini.trec.gz

One hybrid index is built for each set and its parts are asked one by one, so every row of the table
searches the same passages. A run of another program, in TREC's form, is measured beside them, and
``first ten`` is the share of its first ten passages that a retriever finds among its own. Times are
this machine's, with the threads that torch is given.

``bm25, by vectors`` puts the first hundred of BM25 in the order of the encoder's scores: what a
reader of the first hundred can do, where no cross-encoder is at hand.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import get_args

import torch

from searchrl.cli.progress import stages
from searchrl.data.jsonl import read_lines
from searchrl.retrieval.dense import DenseRetriever
from searchrl.retrieval.encoder import Runtime
from searchrl.retrieval.hybrid import HybridRetriever
from searchrl.retrieval.index import build_index, open_index
from searchrl.retrieval.metrics import mean_metrics, rankings_of, read_qrels, read_queries
from searchrl.retrieval.nearest import rescored
from searchrl.retrieval.options import AnyForm, HybridOptions, RerankOptions
from searchrl.retrieval.protocol import IndexRetriever, Ranking, Retriever
from searchrl.retrieval.rerank import RerankedRetriever, load_cross_encoder

Rankings = Mapping[str, Sequence[str]]
_DEPTH = 100
METRICS = ("ndcg@10", "recall@5", "recall@10", "recall@100", "all_gold@10")


def main() -> None:
    """Measure every set and print the table."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    runs = {name: read_run(Path(file)) for name, file in arguments.run}
    print("| set | retriever | " + " | ".join(METRICS) + " | first ten | ms/query |")
    print("|---|---|" + "---|" * (len(METRICS) + 2))
    for name, *files in arguments.set:
        for row in measured(name, [Path(file) for file in files], runs.get(name), arguments):
            print(row, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--encoder", required=True, help="text encoder: a path or a hub name")
    parser.add_argument("--reranker", help="cross-encoder: a path or a hub name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--dtype",
        choices=get_args(AnyForm),
        default="float32",
        help="number form of the encoder of queries; that of passages is float32",
    )
    parser.add_argument(
        "--set",
        nargs=4,
        action="append",
        required=True,
        metavar=("NAME", "CORPUS", "QUERIES", "QRELS"),
    )
    parser.add_argument(
        "--run",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "FILE"),
        help="what another program found for the queries of a set",
    )
    return parser.parse_args()


def measured(
    name: str, files: list[Path], run: Rankings | None, arguments: argparse.Namespace
) -> Iterator[str]:
    """The rows of one set."""
    corpus, questions, judgements = files
    qrels = read_qrels(judgements)
    queries = {name: text for name, text in read_queries(questions).items() if name in qrels}
    if run is not None:
        asked = {query: run.get(query, ()) for query in queries}
        yield _row(name, "the run", mean_metrics(asked, qrels), 1.0, None)
    with tempfile.TemporaryDirectory() as folder, stages() as progress:
        options = HybridOptions(encoder=arguments.encoder)
        index, runtime = Path(folder) / "index", Runtime(dtype=arguments.dtype)
        build_index(corpus, index, options, progress=progress)
        hybrid = open_index(index, verify=False, runtime=runtime)
        for label, retriever in retrievers(hybrid, arguments.reranker):
            started = time.perf_counter()
            rankings = asyncio.run(rankings_of(retriever, queries, _DEPTH))
            taken = 1_000 * (time.perf_counter() - started) / len(queries)
            shared = None if run is None else overlap(rankings, run, 10)
            yield _row(name, label, mean_metrics(rankings, qrels), shared, taken)


def _row(
    name: str, label: str, means: Mapping[str, float], shared: float | None, taken: float | None
) -> str:
    cells = " | ".join(f"{means[metric]:.4f}" for metric in METRICS)
    last = "" if shared is None else f"{shared:.4f}", "" if taken is None else f"{taken:.1f}"
    return f"| {name} | {label} | {cells} | {' | '.join(last)} |"


def overlap(rankings: Rankings, run: Rankings, k: int) -> float:
    """Mean share of a run's first ``k`` passages that are among the first ``k`` of the rankings."""
    shares = [
        len(set(ranking[:k]).intersection(run[query][:k])) / len(run[query][:k])
        for query, ranking in rankings.items()
        if run.get(query)
    ]
    return fmean(shares)


def read_run(path: Path) -> dict[str, list[str]]:
    """Rankings in TREC's form, in the order of their ranks."""
    found: dict[str, list[tuple[int, str]]] = {}
    for _, line in read_lines(path):
        query, _, passage, rank, *_ = line.split()
        found.setdefault(query, []).append((int(rank), passage))
    return {query: [passage for _, passage in sorted(rows)] for query, rows in found.items()}


def retrievers(hybrid: Retriever, reranker: str | None) -> Iterator[tuple[str, Retriever]]:
    """The parts of a hybrid index, the whole, and their answers reordered."""
    assert isinstance(hybrid, HybridRetriever)
    words, vectors = hybrid.parts
    assert isinstance(vectors, DenseRetriever)
    yield "bm25", words
    yield "dense", vectors
    yield "hybrid", hybrid
    yield "bm25, by vectors", Reordered(words, vectors)
    if reranker is not None:
        reader = load_cross_encoder(RerankOptions(model=reranker))
        yield "hybrid, reranked", RerankedRetriever(hybrid, reader, depth=20)


class Reordered(IndexRetriever):
    """The passages that one retriever finds, in the order of their vectors' scores."""

    def __init__(self, first: IndexRetriever, vectors: DenseRetriever) -> None:
        self.corpus = first.corpus
        self._first = first
        self._vectors = vectors

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """See ``IndexRetriever.rank``."""
        found = self._first.rank(queries, max(k, _DEPTH))
        encoded = self._vectors.encode(queries)
        return [
            rescored(query_D, each.rows, self._vectors.vectors, self.corpus.ranks, k)
            for query_D, each in zip(encoded, found, strict=True)
        ]


if __name__ == "__main__":
    main()
