"""The benchmarks of retrieval run, and measure what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.retrieval import build_memory
from benchmarks.retrieval.process_memory import memory


@pytest.mark.pipeline
def test_a_build_is_watched_as_a_user_starts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["build_memory", "--sizes", "50", "400", "--data", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    build_memory.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["| bm25", "50"], ["| bm25", "400"]]
    own, resident = float(rows[1][3]), float(rows[1][4])
    assert 20 < own < resident
    # The corpus is kept for the next time, the index is not.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zipf-400.jsonl", "zipf-50.jsonl"]


def test_a_process_that_has_ended_holds_no_memory() -> None:
    assert memory(2**22 + 1) == (0, 0)
