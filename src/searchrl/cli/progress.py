"""Progress for people: a live bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

_SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int, str], None]
"""Told how many are done and a note on the latest."""


@contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Show one activity of ``total`` units until the block ends."""
    if sys.stderr.isatty():
        with _bar(label, total) as advance:
            yield advance
    else:
        yield _lines(label, total)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show one activity after another: what goes on, how many are done, of how many if known."""
    if not sys.stderr.isatty():
        yield _stage_lines()
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda stage, done, total: status.update(Text(_stage(stage, done, total)))


@contextmanager
def _bar(label: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}", markup=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(label, total=total, note="")
        yield lambda done, note: display.update(task, completed=done, note=note)


def _lines(label: str, total: int) -> Advance:
    started = last = time.monotonic()

    def advance(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            text = f"{label}: {done}/{total} in {now - started:.0f} s  {note}".rstrip()
            typer.echo(text, err=True)

    return advance


def _stage_lines() -> Callable[[str, int, int | None], None]:
    last = time.monotonic()

    def told(stage: str, done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            typer.echo(_stage(stage, done, total), err=True)

    return told


def _stage(stage: str, done: int, total: int | None) -> str:
    return f"{stage}: {done:,}" + ("" if total is None else f" of {total:,}")
