"""``searchrl ask``: one question, its episode shown turn by turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from searchrl.cli.arguments import AsJson, Device, Encoder, Overrides, Threads

if TYPE_CHECKING:
    from rich.console import Console

    from searchrl.agents.episode import Episode, Turn
    from searchrl.experiment import Experiment

_INDENT = 7
"""Where the text of a passage begins."""


def command(
    question: Annotated[str, typer.Argument(help="What to find out.")],
    run: Annotated[
        Path | None, typer.Option(help="A run directory with a trained searcher.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe, in place of a run; with --searcher.")
    ] = None,
    searcher: Annotated[
        Path | None, typer.Option(help="Another searcher: a run, a checkpoint, or a model.")
    ] = None,
    split: Annotated[str, typer.Option(help="Whose corpus to search: train or test.")] = "test",
    index: Annotated[
        Path | None, typer.Option(help="Search this index instead of the run's own.")
    ] = None,
    overrides: Overrides = None,
    encoder: Encoder = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Answer one question with a trained searcher and, where it needs one, its generator.

    Example: searchrl ask "What is the birthplace of the director of ...?" --run runs/demo
    """
    import asyncio

    from rich.console import Console

    from searchrl.agents.agent import Draw
    from searchrl.agents.generator import final_answer
    from searchrl.agents.trained import open_agent
    from searchrl.cli.machine import use_machine
    from searchrl.data.questions import Question
    from searchrl.errors import InfrastructureError
    from searchrl.training.checkpoint import searcher_path

    _check(question, split, index is None and (encoder is not None or device != "cpu"))
    experiment, held = _experiment(run, recipe, searcher, index, overrides or [])
    trained = searcher_path(held)
    use_machine(threads)
    if index is not None:
        retriever = experiment.over(index, encoder, None if device == "cpu" else device)
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


def _check(question: str, split: str, without_index: bool) -> None:
    """Refuse what cannot be asked; ``without_index``: what goes with an index is given alone."""
    from searchrl.errors import InputError

    if split not in ("train", "test"):
        raise InputError(f"--split {split}: expected train or test")
    if without_index:
        raise InputError("--encoder and --device go with --index; a run's own is set in its recipe")
    if not question.strip():
        raise InputError("the question is empty")


def _experiment(
    run: Path | None,
    recipe: str | None,
    searcher: Path | None,
    index: Path | None,
    overrides: list[str],
) -> tuple[Experiment, Path]:
    """What is asked, and where its searcher lies: a run, or a recipe with a searcher.

    Raises:
        InputError: neither or both, or a recipe whose data would have to be made first.
    """
    from searchrl.errors import InputError
    from searchrl.experiment import Experiment
    from searchrl.recipe_file import load_recipe
    from searchrl.retrieval.options import KINDS

    if run is not None and recipe is None:
        if not (run / "config.json").is_file():
            raise InputError(f"{run}: not a run directory (no config.json)")
        return Experiment(load_recipe(str(run / "config.json"), overrides), run), searcher or run
    if run is not None or recipe is None or searcher is None:
        raise InputError("name a run with --run, or a recipe with --recipe and --searcher")
    loaded = load_recipe(recipe, overrides)
    if index is None and loaded.retriever.kind in KINDS:
        raise InputError(f"--recipe {recipe}: searches an index of its own run; name one: --index")
    return Experiment(loaded, Path()), searcher


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
