"""``searchrl report``: write a run's report again from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
) -> None:
    """Write RUN/report.html from the run's metrics, results and episodes.

    Example: searchrl report runs/first
    """
    from searchrl.reporting.run_report import write_run_report

    typer.echo(str(write_run_report(run)))
