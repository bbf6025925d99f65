"""A comparison as people read it: a table on a terminal, Markdown elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from searchrl.evaluation.datasets import Comparison


def show_results(comparison: Comparison) -> None:
    """Print the table of one dataset, or the overview of several, on standard output."""
    from searchrl.evaluation.written import to_markdown, to_rich_table

    if not sys.stdout.isatty():
        typer.echo(to_markdown(comparison), nl=False)
        return
    from rich.console import Console

    Console().print(to_rich_table(comparison))
