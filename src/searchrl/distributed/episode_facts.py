"""The few numbers of an episode that travel with its tokens, and their means over a step.

Names are those of the in-process trainer's metrics, so a run reads the same wherever it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from searchrl.agents.episode import ActionKind, EndReason, Episode

FACTS = "searchrl"
"""The extra field that holds them."""
_TURNS, _INVALID = "turns", "invalid turns"


def facts_of(episode: Episode) -> dict[str, float]:
    """What is averaged over episodes, and the counts that are not."""
    facts = {
        "episodes/finished": float(episode.end is EndReason.FINISHED),
        "episodes/searches": float(episode.searches),
        "episodes/response_tokens": float(sum(episode.trainable_mask)),
        "episodes/context_passages": float(len(episode.context)),
    }
    facts[_TURNS] = float(len(episode.turns))
    facts[_INVALID] = float(sum(t.action.kind is ActionKind.INVALID for t in episode.turns))
    if episode.reward is not None:
        facts |= {f"reward/{name}": value for name, value in episode.reward.parts.items()}
    if (recall := episode.gold_recall) is not None:
        facts["episodes/gold_recall"] = recall
    return facts


def means(facts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each fact over the episodes that have it; of invalid turns, over all turns."""
    values: dict[str, list[float]] = {}
    for one in facts:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    turns, invalid = (sum(values.pop(name, [])) for name in (_TURNS, _INVALID))
    averages = {name: sum(found) / len(found) for name, found in sorted(values.items())}
    return averages | {"episodes/invalid_turns": invalid / turns if turns else 0.0}
