"""Arguments that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(help="A recipe: a TOML file, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value over the recipe, as in --set run.steps=20; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Torch threads; as many as free cores when left out.")
]
Out = Annotated[Path, typer.Option(help="The directory to write to.")]
