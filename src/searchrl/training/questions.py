"""What is trained on: all questions, or, for Gain Beyond RAG, those naive RAG does not solve."""

from __future__ import annotations

from collections.abc import Sequence

from searchrl.data.questions import Question
from searchrl.errors import InputError
from searchrl.experiment import Experiment
from searchrl.rewards.gain import scoring_fingerprint, unsolved
from searchrl.training.precompute import precompute


async def training_questions(experiment: Experiment) -> Sequence[Question]:
    """The training questions in order; naive RAG's scores are made first where they are needed.

    Raises:
        InputError: none is left.
        InfrastructureError: a service failed; what was computed before is kept.
    """
    split, options = experiment.train, experiment.recipe.reward
    if options.kind != "gain_beyond_rag":
        return split.questions
    generator, judge = experiment.generator, experiment.judge
    cache = experiment.cache()
    await precompute(split.questions, split.retriever, options.rag_k, generator, judge, cache)
    if not options.drop_solved:
        return split.questions
    left = unsolved(split.questions, cache, scoring_fingerprint(generator, judge))
    if not left:
        raise InputError("naive RAG solves every training question; nothing is left to learn")
    return left
