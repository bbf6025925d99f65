"""Progress on standard error: a bar on a terminal, few and plain lines elsewhere."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
import torch

from searchrl.cli import machine
from searchrl.cli import progress as module
from searchrl.cli.progress import progress, stages


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
    with stages() as told:
        told("indexing [red]words", 1_000, 20_000)
    assert "indexing [red]words: 1,000 of 20,000" in terminal.getvalue()


def test_stages_are_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 4.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with stages() as told:
        for done, total in ((1, None), (2_000, None), (3, 9), (4, 9)):
            told("reading", done, total)
    assert capsys.readouterr().err == "reading: 2,000\nreading: 4 of 9\n"


def test_busy_cores_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(machine, "_STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    for busy, free in ((0, 4), (1, 3), (3, 1), (4, 1)):
        ticks = [[0, 0, 0, 0] for _ in range(4)]

        def write(ticks: list[list[int]] = ticks) -> None:
            lines = [f"cpu{n} {t[0]} 0 {t[1]} {t[2]} {t[3]} 0 0 0 0 0" for n, t in enumerate(ticks)]
            stat.write_text("\n".join(["cpu 1 2 3 4", *lines, "intr 5", ""]))

        def pass_time(seconds: float, busy: int = busy, ticks: list[list[int]] = ticks) -> None:
            for core in range(4):
                ticks[core][0 if core < busy else 2] += 25
            write(ticks)

        write()
        monkeypatch.setattr(machine.time, "sleep", pass_time)
        assert machine.free_cores() == free


def test_a_wish_for_threads_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(machine, "free_cores", lambda: 7)
    assert (machine.use_machine(3), machine.use_machine(None)) == (3, 7)
    assert asked == [3, 7]
