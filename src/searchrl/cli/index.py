"""``searchrl index``: build an index directory, from vectors made elsewhere too, or check one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from searchrl.cli import arguments
from searchrl.cli.arguments import AsJson, Out

app = typer.Typer(
    name="index", help="Build an index over a corpus, or check one.", no_args_is_help=True
)

Corpus = Annotated[Path, typer.Option(help="Passages: .jsonl or .jsonl.gz, one a line.")]
K1 = Annotated[float | None, typer.Option(help="BM25: how slowly repeats of a word saturate.")]
B = Annotated[float | None, typer.Option(help="BM25: weight of the passage's length, 0 to 1.")]
Encoder = Annotated[str | None, typer.Option(help="Text encoder: a path or a hub name.")]
Device = Annotated[str | None, typer.Option(help="Where the encoder runs, as in cpu or cuda:0.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="key=value, a key of a recipe's [retriever], as in --set max_length=256; repeatable.",
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--shard", help="Index one part of the corpus, as in 2/8, with the weights of the whole."
    ),
]


@app.command()
def build(
    corpus: Corpus,
    out: Out,
    kind: Annotated[str, typer.Option(help="bm25, dense or hybrid.")] = "bm25",
    k1: K1 = None,
    b: B = None,
    encoder: Encoder = None,
    device: Device = None,
    settings: Settings = None,
    shard: Part = None,
    as_json: AsJson = False,
) -> None:
    """Index a corpus; an index that stands at OUT is replaced when the new one is complete.

    A build of vectors that was cut off goes on where it was when the command is given again.

    Example: searchrl index build --kind bm25 --corpus corpus.jsonl --out indexes/wiki
    """
    named = {"kind": kind, "k1": k1, "b": b, "encoder": encoder, "device": device}
    _build(corpus, out, None, named, settings, shard, as_json)


@app.command()
def convert(
    corpus: Corpus,
    vectors: Annotated[
        Path, typer.Option(help="Vectors in the corpus's order: .npy, or a faiss IndexFlat.")
    ],
    out: Out,
    encoder: Encoder = None,
    kind: Annotated[str, typer.Option(help="dense or hybrid.")] = "dense",
    device: Device = None,
    settings: Settings = None,
    shard: Part = None,
    as_json: AsJson = False,
) -> None:
    """Make an index of vectors that another program computed, as Search-R1's e5_Flat.index.

    A few passages are encoded again, to see that corpus, encoder and vectors belong together.

    Example: searchrl index convert --corpus wiki-18.jsonl --vectors e5_Flat.index
    --encoder intfloat/e5-base-v2 --out indexes/wiki-e5
    """
    named = {"kind": kind, "encoder": encoder, "device": device}
    _build(corpus, out, vectors, named, settings, shard, as_json)


@app.command()
def check(
    index: Annotated[Path, typer.Argument(help="The index directory.")],
    encoder: arguments.Encoder = None,
    as_json: AsJson = False,
) -> None:
    """Verify an index: every checksum, and that it answers as it did when it was built.

    Example: searchrl index check indexes/wiki
    """
    from searchrl.retrieval.index import check_index

    report = check_index(index, encoder)
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(f"{index}: good")
    for name, value in report.items():
        if name != "path":
            typer.echo(f"  {name:<15} {value}")


def _build(
    corpus: Path,
    out: Path,
    vectors: Path | None,
    named: dict[str, Any],
    settings: list[str] | None,
    shard: str | None,
    as_json: bool,
) -> None:
    from searchrl.cli.progress import stages
    from searchrl.recipe_file import index_options
    from searchrl.retrieval.index import write_index
    from searchrl.retrieval.shards import parse_shard

    part = None if shard is None else parse_shard(shard)
    given = {name: value for name, value in named.items() if value is not None}
    options = index_options(given, settings or [])
    with stages() as progress:
        count = write_index(corpus, out, options, vectors, progress, part)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "kind": options.kind, "passages": count}))
    else:
        typer.echo(f"{out}: {options.kind} index of {count:,} passages")
