"""A reward without a generator: did the searcher bring every gold passage?

Needs questions that name their gold passages. It is the cheapest signal that a better context can
give, and cannot be gained by persuading a model.
"""

from __future__ import annotations

from searchrl.agents.episode import Episode, Reward
from searchrl.errors import InputError


class ContextRecall:
    """Rewards a final context that holds all gold passages.

    ``parts["recall"]`` is the fraction of them that is there, for metrics.
    """

    async def score(self, episode: Episode) -> Reward:
        """Return 1.0 if every gold passage is in the context, else 0.0.

        Raises:
            InputError: the question names no gold passage.
        """
        if episode.error is not None:
            return Reward(None)
        gold = set(episode.question.gold_ids)
        if not gold:
            raise InputError(
                f'question {episode.question.id!r}: field "supporting_ids" is empty; '
                "the context recall reward needs the ids of the gold passages"
            )
        found = gold & {hit.passage.id for hit in episode.context}
        return Reward(float(found == gold), {"recall": len(found) / len(gold)})
