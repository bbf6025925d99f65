"""``searchrl ask``: one question, its episode shown turn by turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from searchrl.cli.arguments import AsJson, Device, Encoder, Threads

if TYPE_CHECKING:
    from rich.console import Console

    from searchrl.agents.episode import Episode, Turn
    from searchrl.retrieval.protocol import Retriever

_INDENT = 7
"""Where the text of a passage begins."""


def command(
    question: Annotated[str, typer.Argument(help="What to find out.")],
    run: Annotated[Path, typer.Option(help="A run directory with a trained searcher.")],
    split: Annotated[str, typer.Option(help="Whose corpus to search: train or test.")] = "test",
    index: Annotated[
        Path | None, typer.Option(help="Search this index instead of the run's own.")
    ] = None,
    encoder: Encoder = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Answer one question with a run's trained searcher and, where it needs one, its generator.

    Example: searchrl ask "What is the birthplace of the director of ...?" --run runs/demo
    """
    import asyncio

    from rich.console import Console

    from searchrl.agents.agent import Draw
    from searchrl.agents.generator import final_answer
    from searchrl.agents.trained import open_agent
    from searchrl.cli.machine import use_machine
    from searchrl.data.questions import Question
    from searchrl.errors import InfrastructureError, InputError
    from searchrl.experiment import Experiment
    from searchrl.recipe import load_recipe
    from searchrl.retrieval.encoder import Runtime
    from searchrl.retrieval.index import open_index
    from searchrl.training.checkpoint import searcher_path

    if split not in ("train", "test"):
        raise InputError(f"--split {split}: expected train or test")
    if index is None and (encoder is not None or device != "cpu"):
        raise InputError("--encoder and --device go with --index; a run's own is set in its recipe")
    if not question.strip():
        raise InputError("the question is empty")
    if not (run / "config.json").is_file():
        raise InputError(f"{run}: not a run directory (no config.json)")
    experiment = Experiment(load_recipe(str(run / "config.json")), run)
    trained = searcher_path(run)
    use_machine(threads)
    if index is not None:
        retriever: Retriever = open_index(index, encoder=encoder, runtime=Runtime(device))
    else:
        retriever = (experiment.train if split == "train" else experiment.test).retriever
    agent = open_agent(experiment.recipe.agent, experiment.prompted(str(trained)), retriever)

    async def attempt() -> Episode:
        # A question from the command line has no gold answer; none is read on this path.
        episode = await agent.run(Question("ask", question, answers=()), Draw())
        if episode.error is None:
            generator = None if episode.answers_itself else experiment.generator
            await final_answer(episode, generator)
        return episode

    episode = asyncio.run(attempt())
    if as_json:
        typer.echo(json.dumps(episode.to_row()))
    else:
        _show(episode, Console(highlight=False))
    if episode.error is not None:
        raise InfrastructureError(episode.error)


def _show(episode: Episode, console: Console) -> None:
    """The episode turn by turn. Every foreign text is a ``Text``, so none of it is markup."""
    from rich.text import Text

    console.print(Text(_line(episode.question.text), "bold"))
    for number, turn in enumerate(episode.retrievals(), start=episode.initial is None):
        label = f"search {number}" if number else "first search"
        console.print()
        console.print(Text.assemble((label, "cyan"), "  ", _line(turn.action.query)))
        _show_hits(turn, console)
    console.print()
    reader = "read" if episode.answers_itself else "handed to the generator"
    console.print(Text.assemble((reader, "cyan"), f"  {_context(episode)}"))
    for number, hit in enumerate(episode.context, start=1):
        console.print(Text(f"    {number}. {_line(hit.passage.title)}"))
    console.print()
    ended = f"  (search ended: {episode.end.value.replace('_', ' ')})"
    answer = _line(episode.answer or "") or "no answer"
    console.print(Text.assemble((answer, "bold green"), (ended, "dim")))


def _show_hits(turn: Turn, console: Console) -> None:
    from rich.text import Text

    if not turn.hits:
        console.print(Text("    nothing found"))
    for position, hit in enumerate(turn.hits):
        mark = ("✓", "green") if position in (turn.selected or ()) else (" ", "")
        title = f" {position + 1}. {_line(hit.passage.title)}"
        console.print(Text.assemble("  ", mark, title))
        for line in Text(_line(hit.passage.text), "dim").wrap(console, console.width - _INDENT):
            line.rstrip()
            console.print(Text.assemble(" " * _INDENT, line))


def _context(episode: Episode) -> str:
    count = len(episode.context)
    return f"{count} passage" if count == 1 else f"{count} passages"


def _line(text: str) -> str:
    """Untrusted text on one line, without what could act on a terminal."""
    from searchrl.reporting.text import clean

    return " ".join(clean(text).split())
