"""Gain Beyond RAG (s3 section 3): what the searcher's context adds to naive RAG's.

The generator answers from the episode's final context; the accuracy of that answer, less the cached
accuracy of the answer it gives from the plain top passages, is the reward. Differs from s3's code:
a question that is not in the cache is an error, where s3 silently compares with an answer given
without any passage; and a dead generator or judge takes the episode out, where s3 scores it 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from searchrl.agents.episode import Episode, Reward
from searchrl.agents.generator import AnswerGenerator, final_answer
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval.protocol import Hit
from searchrl.rewards.accuracy import generation_accuracy
from searchrl.rewards.judge import Judge
from searchrl.rewards.outcome import agreement
from searchrl.rewards.rag_cache import RagCache, RagEntry, cache_key, question_form
from searchrl.rewards.text import exact_match

_CLOSED_ANSWERS = frozenset({"yes", "no", "true", "false"})


class GainBeyondRag:
    """The reward of s3.

    With ``scale="paper"`` the value is accuracy - base, in {1, 0, -1}; with ``scale="code"`` it is
    2 * accuracy - base, in {2, 1, 0, -1}, as s3's released code adds the accuracy once more.
    """

    def __init__(
        self,
        generator: AnswerGenerator,
        cache: RagCache,
        judge: Judge | None = None,
        scale: Literal["paper", "code"] = "paper",
    ) -> None:
        self._generator = generator
        self._cache = cache
        self._judge = judge
        self._scale = scale

    async def score(self, episode: Episode) -> Reward:
        """Score a finished episode; sets ``episode.answer`` where the generator is to give it.

        When generator or judge fail, the value is ``None`` and ``episode.error`` says how.

        Raises:
            InputError: naive RAG's score for the question is not in the cache.
        """
        if episode.error is not None:
            return Reward(None)
        question = episode.question
        base = float(self._base(question).score)
        try:
            answer = await final_answer(episode, self._generator)
            accuracy = await generation_accuracy(answer, question.answers, self._judge)
        except InfrastructureError as error:
            episode.fail(error)
            return Reward(None)
        gain = accuracy - base
        parts = {
            "accuracy": accuracy,
            "base": base,
            "gain": gain,
            "em": agreement("exact_match", answer, question.answers),
            "f1": agreement("f1", answer, question.answers),
        }
        return Reward(gain if self._scale == "paper" else gain + accuracy, parts)

    def _base(self, question: Question) -> RagEntry:
        fingerprint = scoring_fingerprint(self._generator, self._judge)
        entry = self._cache.by_question(question.source, question.text, fingerprint)
        if entry is None:
            raise InputError(
                f"the RAG cache has no score by {fingerprint!r} for question {question.id!r} "
                f"({question.source}: {question.text!r}); run `searchrl precompute` first"
            )
        return entry


def scoring_fingerprint(generator: AnswerGenerator, judge: Judge | None) -> str:
    """Names the generator and the judge together, as the RAG cache stores them."""
    return f"{generator.fingerprint} | {'span' if judge is None else judge.name}"


def naive_rag_key(
    question: Question, context: Sequence[Hit], generator: AnswerGenerator, judge: Judge | None
) -> str:
    """The cache key of naive RAG's result for a question, known before anything is asked."""
    contents = [hit.passage.contents for hit in context]
    fingerprint = scoring_fingerprint(generator, judge)
    return cache_key(question.text, question.answers, contents, fingerprint)


async def naive_rag_entry(
    question: Question, context: Sequence[Hit], generator: AnswerGenerator, judge: Judge | None
) -> RagEntry:
    """Answer a question from its plain top passages and score it, for the RAG cache.

    Raises:
        InfrastructureError: the generator or the judge failed; nothing is to be stored.
    """
    answer = await generator.answer(question.text, context)
    return RagEntry(
        key=naive_rag_key(question, context, generator, judge),
        source=question.source,
        question=question_form(question.text),
        answer=answer,
        score=int(await generation_accuracy(answer, question.answers, judge)),
        em_score=int(exact_match(answer, question.answers)),
        fingerprint=scoring_fingerprint(generator, judge),
    )


def unsolved(
    questions: Sequence[Question], cache: RagCache, fingerprint: str | None = None
) -> list[Question]:
    """Keep the questions that naive RAG fails, in order (s3's training set).

    Questions with a gold answer yes, no, true or false go too, since a span check accepts "not
    true" for "true". A question that is not in the cache is kept, as in s3.

    Args:
        questions: the questions to choose from.
        cache: naive RAG's scores.
        fingerprint: whose scores count, from :func:`scoring_fingerprint`; ``None`` for the latest.
    """
    kept: list[Question] = []
    for question in questions:
        entry = cache.by_question(question.source, question.text, fingerprint)
        solved = entry is not None and entry.score == 1
        if not solved and not _closed(question):
            kept.append(question)
    return kept


def _closed(question: Question) -> bool:
    return any(answer.strip().lower() in _CLOSED_ANSWERS for answer in question.answers)
