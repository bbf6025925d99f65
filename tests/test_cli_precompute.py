"""Precomputing naive RAG: every question once, whatever interrupts it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError
from searchrl.retrieval.protocol import Hit
from searchrl.rewards.rag_cache import RagCache
from searchrl.training import precompute as module
from searchrl.training.precompute import PrecomputeReport, precompute
from tests.fakes import ListRetriever, passages

QUESTIONS = [Question(f"q{n}", f"Question {n}?", (f"answer {n}",), "set") for n in range(5)]
CORPUS = passages(40)
ANSWERS = {question.text: CORPUS[n : n + 3] for n, question in enumerate(QUESTIONS)}


class CountingGenerator:
    """Right for even questions; fails on one text when told to."""

    fingerprint = "counting"

    def __init__(self, fail: str | None = None) -> None:
        self.asked: list[str] = []
        self._fail = fail

    async def answer(self, question: str, context: Sequence[Hit]) -> str:
        self.asked.append(question)
        assert len(context) == 3
        if question == self._fail:
            raise InfrastructureError("down")
        number = int(question[9])
        return f"answer {number}" if number % 2 == 0 else "unknown"


def fill(path: Path, generator: CountingGenerator, told: list[int] | None = None) -> object:
    retriever = ListRetriever(CORPUS, ANSWERS)
    on_progress = (lambda done: None) if told is None else told.append
    return asyncio.run(
        precompute(QUESTIONS, retriever, 3, generator, None, RagCache.open(path), on_progress)
    )


def test_a_second_pass_asks_nothing(tmp_path: Path) -> None:
    path, told = tmp_path / "cache.jsonl", [0]
    assert fill(path, CountingGenerator(), told) == PrecomputeReport(5, computed=5, solved=3)
    assert told == [0, 5]
    generator = CountingGenerator()
    assert fill(path, generator) == PrecomputeReport(5, computed=0, solved=3)
    assert generator.asked == []
    entry = RagCache.open(path).by_question("set", "Question 2?", "counting | span")
    assert entry is not None
    assert (entry.answer, entry.score, entry.em_score) == ("answer 2", 1, 1)


def test_what_stood_before_a_failure_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    path = tmp_path / "cache.jsonl"
    with pytest.raises(InfrastructureError, match="down"):
        fill(path, CountingGenerator(fail="Question 3?"))
    assert len(RagCache.open(path)) == 2
    generator = CountingGenerator()
    assert fill(path, generator) == PrecomputeReport(5, computed=3, solved=3)
    assert generator.asked == ["Question 2?", "Question 3?", "Question 4?"]


def test_another_context_is_another_entry(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    fill(path, CountingGenerator())
    generator = CountingGenerator()
    other = ListRetriever(CORPUS, ANSWERS | {"Question 1?": CORPUS[20:23]})
    report = asyncio.run(precompute(QUESTIONS, other, 3, generator, None, RagCache.open(path)))
    assert (report.computed, generator.asked) == (1, ["Question 1?"])
