"""One method over questions, with one frozen generator.

Every question is scored; an episode that met a failed service is counted and not scored. Decoding
is greedy. Questions of a chunk run side by side and share the models, so the seconds of an episode
are those since the one before it was finished: their mean is the wall time a question takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from searchrl.agents.agent import Agent, Draw
from searchrl.agents.episode import Episode
from searchrl.agents.generator import Generator, final_answer
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError
from searchrl.evaluation.table import EpisodeScore
from searchrl.rewards.accuracy import generation_accuracy
from searchrl.rewards.judge import Judge
from searchrl.rewards.outcome import agreement

_CHUNK = 250


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An episode with its score."""

    episode: Episode
    score: EpisodeScore


async def evaluate(
    method: Agent,
    name: str,
    questions: Sequence[Question],
    generator: Generator,
    judge: Judge | None,
    on_finished: Callable[[Evaluated], None],
) -> None:
    """Run one method over all questions.

    Args:
        method: the agent.
        name: what the method is called in this evaluation.
        questions: all of them are scored.
        generator: answers from each episode's context, where the method does not answer itself.
        judge: asked about answers the span check does not find, when given.
        on_finished: handed each episode as soon as it is finished, in no fixed order.
    """
    last = time.perf_counter()

    async def attempt(question: Question) -> None:
        nonlocal last
        episode = await method.run(question, Draw())
        episode.method = name
        accuracy = await _accuracy(episode, generator, judge)
        now = time.perf_counter()
        seconds, last = now - last, now
        on_finished(Evaluated(episode, _score(episode, accuracy, generator, seconds)))

    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        await asyncio.gather(*(attempt(question) for question in chunk))


async def _accuracy(episode: Episode, generator: Generator, judge: Judge | None) -> float:
    if episode.error is not None:
        return 0.0
    try:
        answer = await final_answer(episode, generator)
        return await generation_accuracy(answer, episode.question.answers, judge)
    except InfrastructureError as error:
        episode.fail(error)
        return 0.0


def _score(episode: Episode, accuracy: float, generator: Generator, seconds: float) -> EpisodeScore:
    question, answer = episode.question, episode.answer
    return EpisodeScore(
        question_id=question.id,
        method=episode.method,
        source=question.source,
        accuracy=accuracy,
        em=agreement("exact_match", answer, question.answers),
        f1=agreement("f1", answer, question.answers),
        gold_recall=episode.gold_recall,
        searches=episode.searches,
        passages=len(episode.context),
        context_tokens=generator.context_tokens(episode.context),
        seconds=seconds,
        failed=episode.error is not None,
    )
