"""The evaluation runner: one method over questions."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from searchrl.agents.agent import Draw
from searchrl.agents.context import DirectAgent, OracleAgent, RagAgent
from searchrl.agents.episode import EndReason, Episode
from searchrl.agents.generator import Generator
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.evaluation import runner
from searchrl.evaluation.runner import evaluate
from searchrl.evaluation.table import summarise
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
) -> list[runner.Evaluated]:
    """Evaluate one method over all questions; episodes in the order of the questions."""
    frozen, done = cast(Generator, generator), list[runner.Evaluated]()
    asyncio.run(evaluate(method, method.name, QUESTIONS, frozen, judge, done.append))
    return sorted(done, key=lambda item: item.score.question_id)


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


def test_chunks_follow_one_another_and_each_episode_is_handed_over_as_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "_CHUNK", 2)
    told: list[tuple[int, str]] = []
    generator = EchoGenerator()
    asyncio.run(
        evaluate(
            DirectAgent(),
            "alone",
            QUESTIONS,
            cast(Generator, generator),
            None,
            lambda item: told.append((len(generator.asked), item.episode.method)),
        )
    )
    assert told == [(2, "alone")] * 2 + [(4, "alone")] * 2 + [(5, "alone")]


def test_a_question_without_gold_passages_stops_the_oracle() -> None:
    oracle = OracleAgent({passage.id: passage for passage in passages(3)})
    with pytest.raises(InputError, match="no passage 'p9' in the corpus"):
        run(oracle, EchoGenerator())
