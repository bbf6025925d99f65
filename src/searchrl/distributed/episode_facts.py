"""The few numbers of an episode that travel with its tokens, and their means over a step.

Names are those of the in-process trainer's metrics, so a run reads the same wherever it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from searchrl.agents.episode import ActionKind, EndReason, Episode

FACTS = "searchrl"
"""The extra field that holds them."""
_TURNS, _INVALID, _VALUE = "turns", "invalid turns", "value"
_COUNTS = (_TURNS, _INVALID, _VALUE)
"""Facts that are no means of a step on their own."""


def facts_of(episode: Episode) -> dict[str, float]:
    """What is averaged over episodes, and the counts that are not."""
    facts = {
        "episodes/finished": float(episode.end is EndReason.FINISHED),
        "episodes/truncated": float(episode.end is EndReason.TRUNCATED),
        "episodes/searches": float(episode.searches),
        "episodes/response_tokens": float(sum(episode.trainable_mask)),
        "episodes/context_passages": float(len(episode.context)),
    }
    facts[_TURNS] = float(len(episode.turns))
    facts[_INVALID] = float(sum(t.action.kind is ActionKind.INVALID for t in episode.turns))
    if episode.reward is not None:
        if episode.reward.value is not None:
            facts[_VALUE] = episode.reward.value
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
    turns, invalid, _ = (sum(values.pop(name, [])) for name in _COUNTS)
    averages = {name: sum(found) / len(found) for name, found in sorted(values.items())}
    return averages | {"episodes/invalid_turns": invalid / turns if turns else 0.0}


def share_of_equal(facts: Mapping[tuple[str, str], Mapping[str, float]]) -> float:
    """The share of groups whose rewards are all equal, of the episodes by group and place."""
    rewards: dict[str, set[float]] = {}
    for (group, _), one in facts.items():
        rewards.setdefault(group, set()).add(one[_VALUE])
    return sum(len(values) == 1 for values in rewards.values()) / len(rewards)
