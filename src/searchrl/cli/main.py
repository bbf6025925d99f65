"""The ``searchrl`` command: registers the subcommands and turns errors into one line.

Subcommand modules import nothing heavy at module level, so ``--help`` is quick. Output is plain
text wherever it goes; only progress and tables look different on a terminal.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import typer

from searchrl import __version__
from searchrl.cli import (
    ask,
    data,
    demo,
    doctor,
    evaluate,
    evaluate_retrieval,
    index,
    mcp,
    precompute,
    report,
    sample,
    score,
    search,
    serve,
    serve_model,
    sft,
    synthwiki,
    train,
)
from searchrl.errors import InputError, SearchRLError

_CANCELLED = 130
"""What typer answers when Ctrl-C ends a command."""

app = typer.Typer(
    name="searchrl",
    help="Train language models to search with reinforcement learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(index.app)
app.add_typer(data.app)
for name, command in (
    ("demo", demo.command),
    ("synthwiki", synthwiki.command),
    ("search", search.command),
    ("evaluate-retrieval", evaluate_retrieval.command),
    ("serve", serve.command),
    ("mcp", mcp.command),
    ("serve-model", serve_model.command),
    ("precompute", precompute.command),
    ("train", train.command),
    ("sample", sample.command),
    ("sft", sft.command),
    ("ask", ask.command),
    ("evaluate", evaluate.command),
    ("score", score.command),
    ("report", report.command),
    ("doctor", doctor.command),
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
    """Entry point of the ``searchrl`` script; errors of the user's become one line on stderr."""
    # A terminated run ends like a cancelled one: STATUS says so and locks are released.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(prog_name="searchrl", standalone_mode=False)
    except SearchRLError as error:
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        _refuse_usage(error)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", InputError.exit_code)
    if code == _CANCELLED:
        typer.echo("cancelled", err=True)
    sys.exit(code)


def _refuse_usage(error: typer.TyperException) -> NoReturn:
    """One line for a wrong command line; the help itself where a command is left out."""
    message = error.format_message()
    if "\n" in message:
        typer.echo(message, err=True)
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    place = "searchrl" if context is None else context.command_path
    _fail(f"{message.rstrip('.')}; see {place} --help", error.exit_code)


def _fail(message: str, code: int) -> NoReturn:
    from searchrl.reporting.text import clean

    typer.echo(f"error: {' '.join(clean(message).split())}", err=True)
    sys.exit(code)
