"""Episodes of one step, made by several processes and known to all of them.

Every process attempts its share of the questions, groups in one piece, and gets everyone's episodes
in the order of the questions, as one process would have made them: seeds come from questions and
samples. Whatever is then made of the episodes, metrics, baselines, refills, is made everywhere
from the same whole, so nothing has to be averaged across processes.

A signal ends the rollouts of all: the process that got it tells the others in the place of its
episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from searchrl.agents.episode import (
    Action,
    ActionKind,
    EndReason,
    Episode,
    Reward,
    Segment,
    Turn,
)
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.retrieval.protocol import Hit
from searchrl.training.interruption import Interruption
from searchrl.training.parallel.processes import Processes, share
from searchrl.training.rollout import Attempt


async def attempt_together(
    attempt: Attempt,
    questions: Sequence[Question],
    processes: Processes,
    interruption: Interruption,
) -> list[Episode]:
    """The episodes of all questions, in their order; each process makes its share.

    Raises:
        KeyboardInterrupt: a signal came to one of the processes.
    """
    if processes.size == 1:
        return await attempt(questions)
    mine = await interruption.until_received(attempt(share(processes, questions)))
    told = processes.gather(None if mine is None else [to_json(episode) for episode in mine])
    if any(rows is None for rows in told):
        raise KeyboardInterrupt
    groups: list[list[Episode]] = [[] for _ in questions]
    for rank, rows in enumerate(told):
        places = share(processes, range(len(questions)), rank)
        size = len(rows) // max(1, len(places))
        for number, place in enumerate(places):
            own = rows[number * size : (number + 1) * size]
            groups[place] = [from_json(row, questions[place]) for row in own]
    return [episode for group in groups for episode in group]


def to_json(episode: Episode) -> dict[str, Any]:
    """All of an episode but its question, as a JSON object."""
    initial, reward = episode.initial, episode.reward
    return {
        "method": episode.method,
        "segments": [[s.origin, s.token_ids, s.text, s.logprobs] for s in episode.segments],
        "initial": None if initial is None else _turn_to_json(initial),
        "turns": [_turn_to_json(turn) for turn in episode.turns],
        "context": _hits_to_json(episode.context),
        "answer": episode.answer,
        "answers_itself": episode.answers_itself,
        "end": episode.end.value,
        "reward": None if reward is None else [reward.value, reward.parts],
        "error": episode.error,
        "seconds": episode.seconds,
    }


def from_json(row: dict[str, Any], question: Question) -> Episode:
    """The episode that was written, of this question."""
    initial, reward = row["initial"], row["reward"]
    return Episode(
        question=question,
        method=row["method"],
        segments=[
            Segment(origin, tuple(token_ids), text, tuple(logprobs))
            for origin, token_ids, text, logprobs in row["segments"]
        ],
        initial=None if initial is None else _turn_from_json(initial),
        turns=[_turn_from_json(turn) for turn in row["turns"]],
        context=_hits_from_json(row["context"]),
        answer=row["answer"],
        answers_itself=row["answers_itself"],
        end=EndReason(row["end"]),
        reward=None if reward is None else Reward(*reward),
        error=row["error"],
        seconds=row["seconds"],
    )


def _turn_to_json(turn: Turn) -> list[Any]:
    action = [turn.action.kind.value, turn.action.query, turn.action.answer]
    return [action, _hits_to_json(turn.hits), turn.selected, turn.well_formed]


def _turn_from_json(row: list[Any]) -> Turn:
    (kind, query, answer), hits, selected, well_formed = row
    return Turn(
        Action(ActionKind(kind), query, answer),
        _hits_from_json(hits),
        None if selected is None else tuple(selected),
        well_formed,
    )


def _hits_to_json(hits: Sequence[Hit]) -> list[list[Any]]:
    return [[hit.passage.id, hit.passage.title, hit.passage.text, hit.score] for hit in hits]


def _hits_from_json(rows: Sequence[list[Any]]) -> tuple[Hit, ...]:
    return tuple(Hit(Passage(*passage), score) for *passage, score in rows)
