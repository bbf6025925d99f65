"""The evaluation runner and the comparison that writes its results."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from searchrl.agents.agent import Draw
from searchrl.agents.context import DirectAgent, OracleAgent, RagAgent
from searchrl.agents.episode import EndReason, Episode
from searchrl.agents.generator import Generator
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.evaluation import runner
from searchrl.evaluation.comparison import compare
from searchrl.evaluation.runner import evaluate
from searchrl.evaluation.table import summarise
from searchrl.experiment import Experiment
from searchrl.recipe import Recipe
from searchrl.retrieval.protocol import Hit
from searchrl.rewards.judge import Judge
from tests.fakes import FailingRetriever, ListRetriever, ScriptedModel, passages

QUESTIONS = [
    Question(f"q{n}", f"Question {n}?", (f"answer {n}",), gold_ids=("p1", "p9"), hops=2)
    for n in range(5)
]


class EchoGenerator:
    """Says "answer N" for question N, and records what it was handed."""

    fingerprint = "echo"

    def __init__(self, wrong: str | None = None, fail: str | None = None) -> None:
        self.asked: list[tuple[str, tuple[Hit, ...]]] = []
        self._wrong = wrong
        self._fail = fail

    async def answer(self, question: str, context: tuple[Hit, ...]) -> str:
        self.asked.append((question, context))
        await asyncio.sleep(0)
        if question == self._fail:
            raise InfrastructureError("generator at example:3 did not answer")
        if question == self._wrong:
            return "something else"
        return f"The answer {question[9]}."

    def context_tokens(self, context: tuple[Hit, ...]) -> int:
        return 10 * len(context)


def run(
    method: Any,
    generator: EchoGenerator,
    judge: Judge | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[runner.Evaluated]:
    """Evaluate one method over all questions."""
    frozen = cast(Generator, generator)
    return asyncio.run(evaluate(method, QUESTIONS, frozen, judge, on_progress))


def judge_saying(tokenizer: PreTrainedTokenizerFast, verdict: str) -> tuple[Judge, ScriptedModel]:
    model = ScriptedModel(tokenizer, [verdict])
    return Judge(model), model


def test_every_question_is_answered_and_scored() -> None:
    generator = EchoGenerator(wrong="Question 3?")
    done = run(RagAgent(ListRetriever(passages(20)), k=2), generator)
    assert [item.score.question_id for item in done] == [q.id for q in QUESTIONS]
    assert [item.score.accuracy for item in done] == [1, 1, 1, 0, 1]
    # "The answer 0." against "answer 0": the article and the full stop go.
    assert [item.score.em for item in done] == [1, 1, 1, 0, 1]
    assert [item.score.f1 for item in done] == [1, 1, 1, 0, 1]
    assert done[2].episode.answer == "The answer 2."
    assert done[0].score.gold_recall == 0.5
    assert all(item.score.passages == 2 for item in done)
    assert all(item.score.context_tokens == 20 for item in done)
    assert all(item.score.searches == 0 for item in done)
    assert all(item.score.seconds > 0 for item in done)
    assert [context for _, context in generator.asked] == [item.episode.context for item in done]


def test_an_answer_the_method_gave_itself_is_kept() -> None:
    class Answering(DirectAgent):
        async def run(self, question: Question, draw: Draw) -> Episode:
            assert draw == Draw(temperature=0.0, seed=0)
            return Episode(question, self.name, answer="answer 1")

    generator = EchoGenerator()
    done = run(Answering(), generator)
    assert generator.asked == []
    assert [item.score.accuracy for item in done] == [0, 1, 0, 0, 0]
    assert done[1].score.em == done[1].score.f1 == 1


def test_a_failed_retriever_is_counted_and_not_scored() -> None:
    generator = EchoGenerator()
    done = run(RagAgent(FailingRetriever(passages(20), fail_from=3), k=2), generator)
    assert [item.score.failed for item in done] == [False, False, False, True, True]
    assert len(generator.asked) == 3
    (summary,) = summarise(item.score for item in done)
    assert (summary.failed, summary.accuracy.n, summary.accuracy.mean) == (2, 3, 1.0)


def test_a_failed_generator_is_counted_and_not_scored() -> None:
    done = run(DirectAgent(), EchoGenerator(fail="Question 1?"))
    failed = done[1]
    assert failed.score.failed
    assert failed.episode.end is EndReason.INFRASTRUCTURE
    assert failed.episode.error == "generator at example:3 did not answer"
    (summary,) = summarise(item.score for item in done)
    assert (summary.failed, summary.accuracy.n) == (1, 4)


def test_the_judge_is_asked_only_where_the_span_fails(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    judge, model = judge_saying(tiny_tokenizer, "yes")
    done = run(DirectAgent(), EchoGenerator(wrong="Question 3?"), judge)
    assert [item.score.accuracy for item in done] == [1] * 5
    assert len(model.prompts) == 1
    assert "something else" in tiny_tokenizer.decode(model.prompts[0])
    judge, model = judge_saying(tiny_tokenizer, "no")
    done = run(DirectAgent(), EchoGenerator(wrong="Question 3?"), judge)
    assert [item.score.accuracy for item in done] == [1, 1, 1, 0, 1]


def test_a_failed_judge_takes_its_question_out(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    judge = Judge(ScriptedModel(tiny_tokenizer, ["yes"], fail_at=0))
    done = run(DirectAgent(), EchoGenerator(wrong="Question 3?"), judge)
    assert [item.score.failed for item in done] == [False, False, False, True, False]


def test_progress_is_told_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_CHUNK", 2)
    told: list[int] = []
    done = run(DirectAgent(), EchoGenerator(), on_progress=told.append)
    assert told == [2, 4, 5]
    assert len(done) == 5


def test_a_question_without_gold_passages_stops_the_oracle() -> None:
    oracle = OracleAgent({passage.id: passage for passage in passages(3)})
    with pytest.raises(InputError, match="no passage 'p9' in the corpus"):
        run(oracle, EchoGenerator())


def experiment(generator: EchoGenerator, count: int) -> Experiment:
    """What a comparison reads of an experiment."""
    recipe = Recipe.model_validate(
        {
            "name": "fake",
            "data": {
                name: {"kind": "synthwiki", "seed": seed}
                for seed, name in enumerate(("train", "test"))
            },
            "searcher": {"model": "a-searcher"},
            "generator": {"model": "a-generator"},
            "evaluation": {"questions": count},
        }
    )
    test = SimpleNamespace(questions=tuple(QUESTIONS))
    fake = SimpleNamespace(recipe=recipe, test=test, generator=generator, judge=None)
    return cast(Experiment, fake)


def test_a_comparison_writes_table_settings_and_episodes(tmp_path: Path) -> None:
    opened: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        opened.append((label, total))
        yield lambda done, note: None

    corpus: list[Passage] = passages(30)
    methods = [RagAgent(FailingRetriever(corpus, fail_from=2), k=2), DirectAgent()]
    summaries = compare(experiment(EchoGenerator(), 3), methods, tmp_path, progress)
    assert [summary.method for summary in summaries] == ["rag", "direct"]
    assert opened == [("evaluating rag", 3), ("evaluating direct", 3)]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["methods"]["rag"]["n"] == 2
    assert results["methods"]["rag"]["failed"] == 1
    assert results["methods"]["direct"]["vs_rag"]["n"] == 2
    settings = results["settings"]
    assert settings.pop("recipe")["evaluation"]["questions"] == 3
    assert settings == {
        "decoding": "greedy",
        "searcher": "a-searcher",
        "generator": "echo",
        "judge": None,
    }
    assert "| direct |" in (tmp_path / "results.md").read_text()
    rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert rows[0]["score"]["accuracy"] == 1
    assert rows[2]["score"] is None
    assert rows[2]["error"] == "retriever at example:2 did not answer"
