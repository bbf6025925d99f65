"""What a command has asked of served models, and what that cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from searchrl.experiment import Experiment


def show_usage(experiment: Experiment) -> None:
    """Print the account of every served model on standard error; nothing where there is none."""
    for usage in experiment.usage():
        typer.echo(str(usage), err=True)
