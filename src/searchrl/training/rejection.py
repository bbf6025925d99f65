"""Rejection sampling: a searcher's own successful episodes, as examples to fine-tune on.

Several episodes a question are sampled and those with enough reward are kept, token for token as
the model saw and said them (Search-R1's baseline, arXiv 2503.09516, appendix). What it read, prompt
and results, is marked as such and never learned from.

Examples are a directory with a checksum manifest. Its tokens mean something to one tokenizer only,
so the directory names that tokenizer by a digest, and reading with another one is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchrl.agents.agent import Agent
from searchrl.agents.episode import Episode
from searchrl.data.jsonl import read_jsonl, write_jsonl
from searchrl.data.questions import Question
from searchrl.data.storage import atomic_directory, verify_directory
from searchrl.errors import InputError
from searchrl.rewards.protocol import RewardFunction
from searchrl.training.options import RolloutOptions
from searchrl.training.rollout import collect
from searchrl.training.supervised import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = "examples"
"""The directory of examples inside the one that sampling writes to."""

_FILE = "examples.jsonl"
_KIND = "supervised examples"
_CHUNK = 32
"""Questions whose episodes run side by side."""


async def sample_episodes(
    agent: Agent,
    reward: RewardFunction,
    questions: Sequence[Question],
    options: RolloutOptions,
    seed: int,
    least_reward: float,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Episode]:
    """Sample ``options.group_size`` episodes a question and keep the successful ones, in order.

    Args:
        agent: the method whose episodes are sampled.
        reward: says what an episode is worth.
        questions: all of them are attempted.
        options: how episodes are sampled.
        seed: every draw follows from it, the question's id and the number of the attempt.
        least_reward: an episode worth less is not kept.
        on_progress: told how many questions are done.

    Raises:
        InfrastructureError: more episodes failed than ``options.max_failed`` allows.
    """
    kept: list[Episode] = []
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        rollout = await collect(agent, reward, chunk, options, seed, step=0, smallest_group=1)
        kept += [
            episode
            for group in rollout.groups
            for episode, value in zip(group.episodes, group.rewards, strict=True)
            if value >= least_reward
        ]
        on_progress(start + len(chunk))
    return kept


def write_examples(
    folder: Path, episodes: Sequence[Episode], model: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write episodes as supervised examples; an existing directory of them is replaced.

    Args:
        folder: the directory to write.
        episodes: scored episodes.
        model: what sampled them, for the record.
        tokenizer: that model's.
    """
    about = {"kind": _KIND, "model": model, "tokenizer": tokenizer_digest(tokenizer)}
    with atomic_directory(folder, about) as out:
        write_jsonl(out / _FILE, (_row(episode) for episode in episodes))


def read_examples(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Read examples for a model with the given tokenizer.

    Raises:
        InputError: there are none, they are of another tokenizer, or a line is malformed.
        IntegrityError: the directory is not whole.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no directory of examples there; make one: searchrl sample")
    about = verify_directory(folder)
    if about.get("kind") != _KIND:
        raise InputError(f"{folder}: holds no supervised examples; make some: searchrl sample")
    if about.get("tokenizer") != tokenizer_digest(tokenizer):
        raise InputError(
            f"{folder}: its tokens are those of {about.get('model')}, whose tokenizer is not "
            "the searcher's; sample with this searcher or set searcher.model to that one"
        )
    file = folder / _FILE
    examples = [_example(row, f"{file}:{number}") for number, row in read_jsonl(file)]
    if not examples:
        raise InputError(f"{folder}: holds no example; no sampled episode was worth enough")
    return examples


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 of the vocabulary and the chat template."""
    digest = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()


def _row(episode: Episode) -> dict[str, Any]:
    return {
        "id": episode.question.id,
        "method": episode.method,
        "question": episode.question.text,
        "answer": episode.answer,
        "reward": episode.reward.value if episode.reward is not None else None,
        "segments": [
            {"origin": segment.origin, "text": segment.text, "token_ids": list(segment.token_ids)}
            for segment in episode.segments
        ],
    }


def _example(row: dict[str, Any], where: str) -> Example:
    try:
        pairs = list(_weighted(row["segments"]))
    except (KeyError, TypeError) as error:
        raise InputError(
            f'{where}: field "segments" is not a list of origin and token_ids'
        ) from error
    return Example(tuple(token for token, _ in pairs), tuple(weight for _, weight in pairs))


def _weighted(segments: Sequence[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    """Tokens with what they count: those of the model in full, what it read not at all."""
    for segment in segments:
        weight = float(segment["origin"] == "model")
        yield from ((int(token), weight) for token in segment["token_ids"])
