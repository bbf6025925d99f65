"""``searchrl evaluate-retrieval``: an index measured against judged questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from searchrl.cli.arguments import Index


def command(
    index: Index,
    questions: Annotated[Path, typer.Option(help="Question lines, or BEIR query lines.")],
    qrels: Annotated[Path, typer.Option(help="Judgements in BEIR's tab-separated form.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure how well an index finds the relevant passages, each question as its own query.

    Questions without judgements are left out; n is the number that count.

    Example: searchrl evaluate-retrieval --index indexes/wiki --questions dev.jsonl --qrels dev.tsv
    """
    import asyncio

    from searchrl.retrieval.index import open_index
    from searchrl.retrieval.metrics import evaluate_retriever, read_qrels, read_queries

    queries, judgements = read_queries(questions), read_qrels(qrels)
    means = asyncio.run(evaluate_retriever(open_index(index), queries, judgements))
    if as_json:
        typer.echo(json.dumps(means))
        return
    for name, value in means.items():
        typer.echo(
            f"{name:<12} {value:,d}" if isinstance(value, int) else f"{name:<12} {value:.4f}"
        )
