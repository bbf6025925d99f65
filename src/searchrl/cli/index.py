"""``searchrl index``: build an index directory, or check one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="index", help="Build an index over a corpus, or check one.", no_args_is_help=True
)


@app.command()
def build(
    corpus: Annotated[Path, typer.Option(help="Passages: .jsonl or .jsonl.gz, one a line.")],
    out: Annotated[Path, typer.Option(help="The index directory to write.")],
    kind: Annotated[str, typer.Option(help="bm25.")] = "bm25",
    k1: Annotated[float, typer.Option(help="BM25: how slowly repeats of a word saturate.")] = 0.9,
    b: Annotated[float, typer.Option(help="BM25: weight of the passage's length, 0 to 1.")] = 0.4,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Index a corpus; an index that stands at OUT is replaced when the new one is complete.

    Example: searchrl index build --kind bm25 --corpus corpus.jsonl --out indexes/wiki
    """
    from searchrl.cli.progress import working
    from searchrl.data.passages import read_corpus
    from searchrl.retrieval.index import build_index

    with working(f"indexing {corpus}"):
        retriever = build_index(read_corpus(corpus), out, kind=kind, k1=k1, b=b)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "kind": kind, "passages": len(retriever)}))
    else:
        typer.echo(f"{out}: {kind} index of {len(retriever):,} passages")


@app.command()
def check(
    index: Annotated[Path, typer.Argument(help="The index directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Verify an index: every checksum, and that it answers as it did when it was built.

    Example: searchrl index check indexes/wiki
    """
    from searchrl.retrieval.index import check_index

    report = check_index(index)
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(f"{index}: good")
    for name, value in report.items():
        if name != "path":
            typer.echo(f"  {name:<9} {value}")
