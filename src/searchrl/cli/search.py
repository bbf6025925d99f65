"""``searchrl search``: one query over an index."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from searchrl.cli.arguments import Index

if TYPE_CHECKING:
    from searchrl.retrieval.protocol import Hit

_WIDTH = 100


def command(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    index: Index,
    k: Annotated[int, typer.Option(help="How many passages to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Search an index and print the passages found, best first.

    Example: searchrl search --index indexes/wiki --k 3 "Who directed Ed Wood?"
    """
    import asyncio

    from searchrl.retrieval.index import open_index

    (hits,) = asyncio.run(open_index(index).search([query], k))
    if as_json:
        typer.echo(json.dumps([_row(hit) for hit in hits]))
    else:
        for rank, hit in enumerate(hits, start=1):
            typer.echo(_lines(rank, hit))


def _row(hit: Hit) -> dict[str, str | float]:
    passage = hit.passage
    return {"id": passage.id, "title": passage.title, "text": passage.text, "score": hit.score}


def _lines(rank: int, hit: Hit) -> str:
    head = f"{rank:>3}. {hit.score:7.3f}  {hit.passage.title} [{hit.passage.id}]"
    return f"{_printable(head)}\n     {_printable(hit.passage.text)[:_WIDTH]}"


def _printable(text: str) -> str:
    """The text in one line, without the control characters that could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
