"""Retrieval quality side by side: words, vectors, both, and reranked, in one table.

    python -m benchmarks.retrieval.quality --encoder MODEL \
        --set nfcorpus corpus.jsonl queries.jsonl qrels/test.tsv

One hybrid index is built for each set and its parts are asked one by one, so every row of the table
searches the same passages. Times are this machine's, with the threads that torch is given.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from searchrl.cli.progress import stages
from searchrl.retrieval.hybrid import HybridRetriever
from searchrl.retrieval.index import build_index
from searchrl.retrieval.metrics import evaluate_retriever, read_qrels, read_queries
from searchrl.retrieval.options import HybridOptions, RerankOptions
from searchrl.retrieval.protocol import Retriever
from searchrl.retrieval.rerank import RerankedRetriever, load_cross_encoder

METRICS = ("ndcg@10", "recall@5", "recall@10", "recall@100", "all_gold@10")


def main() -> None:
    """Measure every set and print the table."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    print("| set | retriever | " + " | ".join(METRICS) + " | ms/query |")
    print("|---|---|" + "---|" * (len(METRICS) + 1))
    for name, *files in arguments.set:
        for row in measured(name, [Path(file) for file in files], arguments):
            print(row, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--encoder", required=True, help="text encoder: a path or a hub name")
    parser.add_argument("--reranker", help="cross-encoder: a path or a hub name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--set",
        nargs=4,
        action="append",
        required=True,
        metavar=("NAME", "CORPUS", "QUERIES", "QRELS"),
    )
    return parser.parse_args()


def measured(name: str, files: list[Path], arguments: argparse.Namespace) -> Iterator[str]:
    """The rows of one set."""
    corpus, questions, judgements = files
    queries, qrels = read_queries(questions), read_qrels(judgements)
    asked = sum(query in qrels for query in queries)
    with tempfile.TemporaryDirectory() as folder, stages() as progress:
        options = HybridOptions(encoder=arguments.encoder)
        hybrid = build_index(corpus, Path(folder) / "index", options, progress=progress)
        for label, retriever in retrievers(hybrid, arguments.reranker):
            started = time.perf_counter()
            means = asyncio.run(evaluate_retriever(retriever, queries, qrels))
            taken = 1_000 * (time.perf_counter() - started) / asked
            cells = " | ".join(f"{means[metric]:.4f}" for metric in METRICS)
            yield f"| {name} | {label} | {cells} | {taken:.1f} |"


def retrievers(hybrid: Retriever, reranker: str | None) -> Iterator[tuple[str, Retriever]]:
    """The parts of a hybrid index, the whole, and the whole reranked."""
    assert isinstance(hybrid, HybridRetriever)
    words, vectors = hybrid.parts
    yield "bm25", words
    yield "dense", vectors
    yield "hybrid", hybrid
    if reranker is not None:
        reader = load_cross_encoder(RerankOptions(model=reranker))
        yield "hybrid, reranked", RerankedRetriever(hybrid, reader, depth=20)


if __name__ == "__main__":
    main()
