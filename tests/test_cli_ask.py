"""How ``ask`` shows an episode."""

from __future__ import annotations

import io

from rich.console import Console

from searchrl.agents.episode import Action, ActionKind, EndReason, Episode, Turn
from searchrl.cli.ask import _show
from searchrl.data.questions import Question
from searchrl.retrieval.protocol import Hit
from tests.fakes import passages


def episode() -> Episode:
    """Two retrievals of two passages; the second passage of the search was selected."""
    hits = [Hit(passage, 1.0) for passage in passages(4, words=14)]
    search = Action(ActionKind.SEARCH, query="founder of Title 1")
    return Episode(
        Question("ask", "Who founded it?", ()),
        "s3",
        initial=Turn(Action(ActionKind.SEARCH, query="Who founded it?"), tuple(hits[:2])),
        turns=[Turn(search, tuple(hits[2:]), (1,)), Turn(Action(ActionKind.FINISH))],
        context=(hits[3],),
        answer="Ada",
        end=EndReason.FINISHED,
    )


def shown(what: Episode, width: int = 80, terminal: bool = False) -> str:
    output = io.StringIO()
    _show(what, Console(file=output, width=width, force_terminal=terminal, highlight=False))
    return output.getvalue()


def test_each_search_its_selection_and_the_answer() -> None:
    body = "word word word word word word word word word word word word."
    assert shown(episode()) == (
        "Who founded it?\n\n"
        "first search  Who founded it?\n"
        f"    1. Title 1\n       text 1 {body}\n"
        f"    2. Title 2\n       text 2 {body}\n\n"
        "search 1  founder of Title 1\n"
        f"    1. Title 3\n       text 3 {body}\n"
        f"  ✓ 2. Title 4\n       text 4 {body}\n\n"
        "handed to the generator  1 passage\n"
        "    1. Title 4\n\n"
        "Ada  (search ended: finished)\n"
    )


def test_long_passages_wrap_under_their_own_start() -> None:
    lines = shown(episode(), width=30).splitlines()
    texts = [line for line in lines if "word" in line]
    assert len(texts) > 8
    assert all(line.startswith("       ") and len(line) <= 30 for line in texts)


def test_colours_are_for_terminals() -> None:
    assert "\x1b[" in shown(episode(), terminal=True)
    assert "\x1b" not in shown(episode())


def test_nothing_found_and_no_answer_are_said() -> None:
    empty = Episode(
        Question("ask", "Who?", ()), "s3", initial=Turn(Action(ActionKind.SEARCH, query="Who?"))
    )
    text = shown(empty)
    assert "first search  Who?\n    nothing found\n" in text
    assert "0 passages" in text
    assert "no answer  (" in text
