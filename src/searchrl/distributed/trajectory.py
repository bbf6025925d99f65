"""Episodes as the prompt and response rows that other trainers learn from.

A row is what the model read before it first spoke, and everything after, with a mask that is 1 on
the tokens it sampled. Nothing is tokenised again. A row ends with a sampled token: verl and TRL put
an episode's reward on the last token of its row, and a reward on an observation is lost to GAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from searchrl.agents.episode import Episode, Segment


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One row.

    Attributes:
        prompt: tokens before the first sampled one.
        response: the first sampled token and what follows, up to the last sampled one.
        mask: 1 on sampled tokens of the response, 0 on observations.
        logprobs: the sampled tokens' log-probabilities; 0 on observations.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]


def trajectories(episode: Episode) -> list[Trajectory]:
    """The rows of an episode, in order: one for each prompt that a sampled token follows."""
    starts = [place for place, s in enumerate(episode.segments) if s.origin == "prompt"]
    ends = pairwise([*starts, len(episode.segments)])
    parts = [episode.segments[start:end] for start, end in ends]
    return [_trajectory(part) for part in parts if _sampled(part)]


def _sampled(segments: Sequence[Segment]) -> list[int]:
    """The places of the segments that hold sampled tokens."""
    return [place for place, s in enumerate(segments) if s.origin == "model" and s.token_ids]


def _trajectory(segments: Sequence[Segment]) -> Trajectory:
    sampled = _sampled(segments)
    before, after = segments[: sampled[0]], segments[sampled[0] : sampled[-1] + 1]
    response: list[int] = []
    mask: list[int] = []
    logprobs: list[float] = []
    for segment in after:
        own = segment.origin == "model"
        response += segment.token_ids
        mask += [int(own)] * len(segment.token_ids)
        logprobs += segment.logprobs if own else [0.0] * len(segment.token_ids)
    if len(logprobs) != len(response):
        raise ValueError(f"{len(logprobs)} log-probabilities for {len(response)} response tokens")
    prompt = tuple(token for segment in before for token in segment.token_ids)
    return Trajectory(prompt, tuple(response), tuple(mask), tuple(logprobs))
