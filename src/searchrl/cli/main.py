"""The ``searchrl`` command: registers the subcommands and turns errors into one line.

Subcommand modules import nothing heavy at module level, so ``--help`` is quick.
"""

from __future__ import annotations

import sys

import typer

from searchrl import __version__
from searchrl.cli import (
    ask,
    demo,
    evaluate,
    evaluate_retrieval,
    index,
    precompute,
    report,
    score,
    search,
    synthwiki,
    train,
)
from searchrl.errors import SearchRLError

app = typer.Typer(
    name="searchrl",
    help="Train language models to search with reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(index.app)
for name, command in (
    ("demo", demo.command),
    ("synthwiki", synthwiki.command),
    ("search", search.command),
    ("evaluate-retrieval", evaluate_retrieval.command),
    ("precompute", precompute.command),
    ("train", train.command),
    ("ask", ask.command),
    ("evaluate", evaluate.command),
    ("score", score.command),
    ("report", report.command),
):
    app.command(name)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Train language models to search with reinforcement learning."""


def run() -> None:
    """Entry point of the ``searchrl`` script."""
    try:
        app()
    except SearchRLError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("cancelled", err=True)
        sys.exit(130)
