"""Naive RAG's answer and score for every question, once, ahead of training.

Resumable: a question whose key is in the cache is not asked again, and each chunk is on disk before
the next begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from searchrl.agents.generator import AnswerGenerator
from searchrl.data.questions import Question
from searchrl.retrieval.protocol import Hit, Retriever
from searchrl.rewards.gain import naive_rag_entry, naive_rag_key
from searchrl.rewards.judge import Judge
from searchrl.rewards.rag_cache import RagCache

_CHUNK = 256


@dataclass(frozen=True, slots=True)
class PrecomputeReport:
    """What a pass over the questions did."""

    questions: int
    computed: int
    solved: int


async def precompute(
    questions: Sequence[Question],
    retriever: Retriever,
    k: int,
    generator: AnswerGenerator,
    judge: Judge | None,
    cache: RagCache,
    on_progress: Callable[[int], None] = lambda done: None,
) -> PrecomputeReport:
    """Fill the cache.

    Args:
        questions: all training questions.
        retriever: the index naive RAG uses.
        k: passages handed to the generator.
        generator: the frozen generator.
        judge: asked about answers the span check does not find, when given.
        cache: read and appended to.
        on_progress: told how many questions are done.

    Raises:
        InfrastructureError: a service failed; what was computed before is kept.
    """
    computed = solved = 0
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        contexts = await retriever.search([question.query for question in chunk], k)
        keys = [
            naive_rag_key(question, hits, generator, judge)
            for question, hits in zip(chunk, contexts, strict=True)
        ]
        owed: list[tuple[Question, list[Hit]]] = [
            (question, hits)
            for question, hits, key in zip(chunk, contexts, keys, strict=True)
            if cache.get(key) is None
        ]
        for entry in await asyncio.gather(
            *(naive_rag_entry(question, hits, generator, judge) for question, hits in owed)
        ):
            cache.put(entry)
        computed += len(owed)
        known = [cache.get(key) for key in keys]
        solved += sum(entry.score for entry in known if entry is not None)
        on_progress(start + len(chunk))
    return PrecomputeReport(len(questions), computed, solved)
