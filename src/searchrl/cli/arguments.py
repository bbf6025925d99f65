"""Arguments that several subcommands share."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from searchrl.errors import InputError

Recipe = Annotated[str, typer.Argument(help="A recipe: a TOML file, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value over the recipe, as in --set run.steps=20; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Torch threads; as many as free cores when left out.")
]
Index = Annotated[Path, typer.Option(help="An index directory.")]
Out = Annotated[Path, typer.Option(help="The directory to write to.")]


def need_packages(extra: str, *packages: str) -> None:
    """See that the packages of an extra are installed.

    Raises:
        InputError: one is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f"{package} is not installed: pip install 'searchrl[{extra}]'")


def split_names(text: str, option: str) -> tuple[str, ...]:
    """The names of a comma-separated option.

    Raises:
        InputError: there is none, or one comes twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InputError(f"{option}: name at least one, as --help shows")
    if len(set(names)) < len(names):
        raise InputError(f"{option} {text}: each name once")
    return names
