"""``searchrl data``: published datasets by name, and question files of other projects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from searchrl.cli.arguments import AsJson, Out

app = typer.Typer(
    name="data", help="Fetch datasets, and convert question files.", no_args_is_help=True
)


@app.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """List the datasets that can be fetched.

    Example: searchrl data list
    """
    from searchrl.data.catalog import CATALOG

    if as_json:
        rows = [
            {"name": entry.name, "kind": entry.kind, "splits": list(entry.splits)}
            | {"from": entry.repository or entry.url, "evaluation": entry.evaluation}
            for entry in CATALOG.values()
        ]
        typer.echo(json.dumps(rows))
        return
    for entry in CATALOG.values():
        typer.echo(f"{entry.name:<16} {entry.kind:<10} {entry.size}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A dataset; see searchrl data list.")],
    out: Out,
    split: Annotated[
        list[str] | None, typer.Option(help="Only this split; repeatable. All when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a published dataset to OUT/NAME, which appears when all of it is there.

    Example: searchrl data fetch bamboogle --out data
    """
    from searchrl.data.fetch import fetch_dataset
    from searchrl.data.storage import read_manifest

    def announce(text: str) -> None:
        typer.echo(f"fetching {text}", err=True)

    directory = fetch_dataset(name, out, tuple(split or ()), announce=announce)
    files = read_manifest(directory)["files"]
    if as_json:
        typer.echo(json.dumps({"path": str(directory), "files": files}))
        return
    for file, facts in files.items():
        typer.echo(f"{directory / file}: {facts['bytes']:,} bytes, sha256 {facts['sha256']}")


@app.command()
def convert(
    source_file: Annotated[Path, typer.Argument(metavar="IN", help="Questions in any known form.")],
    to: Annotated[Path, typer.Option(help="Question lines, or verl rows for .parquet.")],
    source: Annotated[
        str | None, typer.Option(help="Keep the questions of this dataset only.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    split: Annotated[str, typer.Option(help="What verl rows call their split.")] = "train",
    instruction: Annotated[
        str, typer.Option(help="Goes before the question in the prompt of verl rows.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Read questions in FlashRAG's, verl's, Search-R1's, s3's, MIRAGE's or BEIR's form.

    Example: searchrl data convert train.parquet --to questions.jsonl
    """
    from searchrl.data.forms import read_dataset
    from searchrl.data.jsonl import write_jsonl
    from searchrl.data.verl import write_verl_parquet

    questions = read_dataset(source_file, source, limit)
    if to.suffix == ".parquet":
        write_verl_parquet(to, questions, split, instruction)
    else:
        write_jsonl(to, (question.to_row() for question in questions))
    sources = sorted({question.source for question in questions})
    if as_json:
        typer.echo(json.dumps({"path": str(to), "questions": len(questions), "sources": sources}))
    else:
        typer.echo(f"{to}: {len(questions):,} questions of {', '.join(sources)}")
