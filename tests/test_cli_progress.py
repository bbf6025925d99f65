"""Progress on standard error: a bar on a terminal, few and plain lines elsewhere."""

from __future__ import annotations

import io
import os
import sys

import pytest
import torch

from searchrl.cli import progress as module
from searchrl.cli.progress import progress, working
from searchrl.cli.threads import free_cores, set_threads


class Terminal(io.StringIO):
    """Text that is taken for a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_are_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 4.0, 11.0, 12.0, 20.0, 22.5])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("reading", 5) as advance:
        for done in range(1, 6):
            advance(done, f"note {done}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "reading: 2/5 in 11 s  note 2\nreading: 5/5 in 22 s  note 5\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress("reading", 2) as advance:
        advance(2, "a [bold note")
    assert "2/2" in terminal.getvalue()
    assert "a [bold note" in terminal.getvalue()
    with working("indexing [red]corpus"):
        pass
    assert "indexing [red]corpus" in terminal.getvalue()


def test_work_without_units_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with working("indexing"):
        pass
    assert capsys.readouterr().err == ""


def test_a_busy_machine_gets_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    for load, free in ((0.2, 4), (1.4, 3), (3.9, 1), (50.0, 1)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert free_cores() == free


def test_a_wish_for_threads_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr("searchrl.cli.threads.free_cores", lambda: 7)
    assert (set_threads(3), set_threads(None)) == (3, 7)
    assert asked == [3, 7]
