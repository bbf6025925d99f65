"""``searchrl ask``: one question, its episode shown turn by turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from searchrl.cli.arguments import AsJson, Threads

if TYPE_CHECKING:
    from rich.console import Console

    from searchrl.agents.episode import Episode, Turn


def command(
    question: Annotated[str, typer.Argument(help="What to find out.")],
    run: Annotated[Path, typer.Option(help="A run directory with a trained searcher.")],
    split: Annotated[str, typer.Option(help="Whose corpus to search: train or test.")] = "test",
    index: Annotated[
        Path | None, typer.Option(help="Search this index instead of the run's own.")
    ] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Answer one question with a run's trained searcher and its frozen generator.

    Example: searchrl ask "What is the birthplace of the director of ...?" --run runs/demo
    """
    import asyncio

    from rich.console import Console

    from searchrl.agents.agent import Draw
    from searchrl.agents.s3 import S3Agent
    from searchrl.cli.threads import set_threads
    from searchrl.data.questions import Question
    from searchrl.errors import InputError
    from searchrl.experiment import Experiment
    from searchrl.recipe import load_recipe
    from searchrl.retrieval.index import open_index
    from searchrl.training.checkpoint import searcher_path

    if split not in ("train", "test"):
        raise InputError(f"--split {split}: expected train or test")
    if not question.strip():
        raise InputError("the question is empty")
    trained = searcher_path(run)
    set_threads(threads)
    experiment = Experiment(load_recipe(str(run / "config.json")), run)
    chosen = experiment.train if split == "train" else experiment.test
    retriever = chosen.retriever if index is None else open_index(index)
    agent = S3Agent(experiment.searcher(str(trained)), retriever, experiment.recipe.agent)

    async def attempt() -> Episode:
        # A question from the command line has no gold answer; none is read on this path.
        episode = await agent.run(Question("ask", question, answers=()), Draw())
        if episode.error is None:
            episode.answer = await experiment.generator.answer(question, episode.context)
        return episode

    episode = asyncio.run(attempt())
    if as_json:
        typer.echo(json.dumps(episode.to_row()))
    else:
        _show(episode, Console())


def _show(episode: Episode, console: Console) -> None:
    from rich.markup import escape

    from searchrl.reporting.text import clean

    def safe(text: str) -> str:
        return escape(clean(text))

    console.print(f"[bold]{safe(episode.question.text)}[/bold]")
    for number, turn in enumerate(episode.retrievals()):
        label = "first search" if number == 0 else f"search {number}"
        console.print(f"\n[cyan]{label}[/cyan]  {safe(turn.action.query)}")
        _show_hits(turn, console, safe)
    console.print(f"\n[cyan]handed to the generator[/cyan]  {len(episode.context)} passages")
    for hit in episode.context:
        console.print(f"  {safe(hit.passage.title)}")
    console.print(f"\n[bold green]{safe(episode.answer or '')}[/bold green]  ({episode.end.value})")
    if episode.error is not None:
        console.print(f"[red]{safe(episode.error)}[/red]")


def _show_hits(turn: Turn, console: Console, safe: Callable[[str], str]) -> None:
    for position, hit in enumerate(turn.hits):
        mark = "[green]✓[/green]" if position in (turn.selected or ()) else " "
        console.print(f"  {mark} {position + 1}. {safe(hit.passage.title)}")
        console.print(f"       [dim]{safe(hit.passage.text)}[/dim]")
