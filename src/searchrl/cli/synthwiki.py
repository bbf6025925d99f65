"""``searchrl synthwiki``: generate an encyclopedia and its questions."""

from __future__ import annotations

from typing import Annotated

import typer

from searchrl.cli.arguments import Out


def command(
    out: Out,
    size: Annotated[int, typer.Option(help="Passages.")] = 1_000,
    seed: Annotated[int, typer.Option(help="0 to 9,999; worlds share no entity.")] = 0,
    questions: Annotated[int, typer.Option(help="Questions.", min=1)] = 500,
) -> None:
    """Write corpus.jsonl, questions.jsonl and qrels.tsv of a generated world.

    Example: searchrl synthwiki --size 1000 --seed 7 --out worlds/seven
    """
    from searchrl.data.synthwiki import write_synthwiki

    write_synthwiki(out, size, seed, questions)
    typer.echo(f"{out}: {size:,} passages, {questions:,} questions")
