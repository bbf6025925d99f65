"""A comparison as people read it: a table on a terminal, Markdown elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from searchrl.evaluation.table import MethodSummary


def show_results(summaries: Sequence[MethodSummary]) -> None:
    """Print the summaries on standard output."""
    from searchrl.evaluation.table import to_markdown, to_rich_table

    if not sys.stdout.isatty():
        typer.echo(to_markdown(summaries), nl=False)
        return
    from rich.console import Console

    Console().print(to_rich_table(summaries))
