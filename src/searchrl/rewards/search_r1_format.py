"""Search-R1's reward with format and retrieval terms (arXiv 2505.15117, section 3; its v0.3).

| answer | form | gold answer retrieved | reward |
|---|---|---|---|
| right | valid | any | 1 |
| right | not valid | any | 1 - structure |
| wrong | valid | yes | structure + retrieval |
| wrong | valid | no | structure |
| wrong | not valid | any | final |
| none | any | any | 0 |

A form is valid when every output of the model is one thinking block and one action block, every
action but the last is a search, and the last is the answer. It is judged on the episode's turns, as
they were parsed from the model's own text while it ran.

Differs from the original, which judges the decoded transcript: there a passage that holds a tag, a
block that a budget cut, or a chat template other than Qwen's makes every form invalid, and an
episode without an answer earns ``final``, for the example in the instructions. Here a passage whose
end was cut counts with all of its text.
"""

from __future__ import annotations

from searchrl.agents.episode import ActionKind, Episode, Reward
from searchrl.rewards.outcome import agreement
from searchrl.rewards.text import substring_match


class SearchR1FormatReward:
    """Exact match with terms for form and retrieval, for methods that answer themselves.

    Args:
        structure: what a valid form is worth.
        final: what an answer is worth where the form is not valid.
        retrieval: what a retrieved gold answer is worth where the form is valid.
    """

    def __init__(self, structure: float = 0.2, final: float = 0.1, retrieval: float = 0.0) -> None:
        self._structure = structure
        self._final = final
        self._retrieval = retrieval

    async def score(self, episode: Episode) -> Reward:
        """Score a finished episode."""
        if episode.error is not None:
            return Reward(None)
        em = agreement("exact_match", episode.answer, episode.question.answers)
        valid, retrieved = valid_structure(episode), gold_retrieved(episode)
        parts = {
            "answered": float(episode.answer is not None),
            "em": em,
            "f1": agreement("f1", episode.answer, episode.question.answers),
            "valid_structure": float(valid),
            "gold_retrieved": float(retrieved),
        }
        return Reward(self._value(episode.answer is not None, em == 1, valid, retrieved), parts)

    def _value(self, answered: bool, right: bool, valid: bool, retrieved: bool) -> float:
        if not answered:
            return 0.0
        if right:
            return 1.0 if valid else 1.0 - self._structure
        if not valid:
            return self._final
        return self._structure + (self._retrieval if retrieved else 0.0)


def valid_structure(episode: Episode) -> bool:
    """Whether the model thought and searched, any number of times, then thought and answered.

    ``start -> search -> ... -> search -> answer -> end``: an output that is not well formed, an
    invalid action, or an end without an answer leaves the machine in no accepting state.
    """
    state = "start"
    for turn in episode.turns:
        if state != "start" or not turn.well_formed:
            return False
        match turn.action.kind:
            case ActionKind.SEARCH:
                state = "start"
            case ActionKind.ANSWER:
                state = "end"
            case _:
                return False
    return state == "end"


def gold_retrieved(episode: Episode) -> bool:
    """Whether a gold answer occurs, normalised, in a passage that any search returned."""
    return any(
        substring_match(hit.passage.contents, episode.question.answers)
        for turn in episode.retrievals()
        for hit in turn.hits
    )
