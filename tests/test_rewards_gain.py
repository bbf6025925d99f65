"""Gain Beyond RAG and context recall on typed episodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from searchrl.agents.episode import Episode, Reward
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval.protocol import Hit
from searchrl.rewards.context_recall import ContextRecall
from searchrl.rewards.gain import (
    GainBeyondRag,
    naive_rag_entry,
    naive_rag_key,
    scoring_fingerprint,
    unsolved,
)
from searchrl.rewards.judge import Judge
from searchrl.rewards.rag_cache import UNKNOWN_FINGERPRINT, RagCache, RagEntry

QUESTION = Question("q1", "Capital of France", ("Paris",), source="nq", gold_ids=("p1", "p2"))
RIGHT, WRONG = "It is Paris", "Lyon"


class FixedGenerator:
    """Gives one answer and remembers what it was asked."""

    fingerprint = "fixed"

    def __init__(self, answer: str | Exception = RIGHT) -> None:
        self._answer = answer
        self.asked: list[tuple[str, list[str]]] = []

    async def answer(self, question: str, context: Sequence[Hit]) -> str:
        self.asked.append((question, [hit.passage.id for hit in context]))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def hits(*ids: str) -> tuple[Hit, ...]:
    return tuple(Hit(Passage(i, f"title {i}", f"text {i}"), 1.0) for i in ids)


def cached(directory: Path, score: int, fingerprint: str = "fixed | span") -> RagCache:
    cache = RagCache.open(directory / "rag_cache.jsonl")
    cache.put(RagEntry("k", "nq", "Capital of France?", "-", score, score, fingerprint))
    return cache


def score(
    reward: GainBeyondRag | ContextRecall, episode: Episode | None = None
) -> tuple[Reward, Episode]:
    episode = episode or Episode(QUESTION, "s3", context=hits("p2", "p7"))
    return asyncio.run(reward.score(episode)), episode


@pytest.mark.parametrize(
    ("answer", "base", "scale", "value"),
    [
        (RIGHT, 0, "code", 2.0),
        (RIGHT, 1, "code", 1.0),
        (WRONG, 0, "code", 0.0),
        (WRONG, 1, "code", -1.0),
        (RIGHT, 0, "paper", 1.0),
        (RIGHT, 1, "paper", 0.0),
        (WRONG, 0, "paper", 0.0),
        (WRONG, 1, "paper", -1.0),
    ],
)
def test_the_value_on_both_scales(
    tmp_path: Path, answer: str, base: int, scale: Literal["paper", "code"], value: float
) -> None:
    generator = FixedGenerator(answer)
    reward, episode = score(GainBeyondRag(generator, cached(tmp_path, base), scale=scale))
    accuracy = float(answer == RIGHT)
    assert reward.value == value
    assert reward.parts == {
        "accuracy": accuracy,
        "base": float(base),
        "gain": accuracy - base,
        "em": 0.0,
        "f1": pytest.approx(0.5) if answer == RIGHT else 0.0,
    }
    assert episode.answer == answer
    assert generator.asked == [("Capital of France", ["p2", "p7"])]


def test_an_answer_that_exists_is_scored_as_it_is(tmp_path: Path) -> None:
    generator = FixedGenerator(WRONG)
    episode = Episode(QUESTION, "s3", answer="Paris")
    reward, _ = score(GainBeyondRag(generator, cached(tmp_path, 0)), episode)
    assert reward.value == 1.0
    assert generator.asked == []


@pytest.mark.parametrize("fingerprint", ["other | span", "fixed | judge"])
def test_a_score_that_is_not_there_or_is_of_another_generator_is_an_error(
    tmp_path: Path, fingerprint: str
) -> None:
    generator = FixedGenerator()
    reward = GainBeyondRag(generator, cached(tmp_path, 0, fingerprint))
    with pytest.raises(InputError, match=r"'q1' .*Capital of France.*searchrl precompute"):
        score(reward)
    assert generator.asked == []


def test_a_score_from_an_original_cache_serves_any_generator(tmp_path: Path) -> None:
    reward = GainBeyondRag(FixedGenerator(), cached(tmp_path, 1, UNKNOWN_FINGERPRINT))
    assert score(reward)[0].value == 0.0


def test_a_dead_generator_takes_the_episode_out(tmp_path: Path) -> None:
    generator = FixedGenerator(InfrastructureError("server\n  gone"))
    reward, episode = score(GainBeyondRag(generator, cached(tmp_path, 0)))
    assert reward == Reward(None)
    assert episode.error == "server gone"
    assert episode.answer is None


def test_a_dead_judge_takes_the_episode_out(tmp_path: Path) -> None:
    class DeadJudge(Judge):
        def __init__(self) -> None:
            self.name = "dead"

        async def check(self, prediction: str, answers: Sequence[str]) -> bool:
            raise InfrastructureError

    cache = cached(tmp_path, 0, "fixed | dead")
    reward, episode = score(GainBeyondRag(FixedGenerator(WRONG), cache, DeadJudge()))
    assert reward == Reward(None)
    assert episode.error == "InfrastructureError"


def test_an_episode_that_failed_before_is_not_scored(tmp_path: Path) -> None:
    generator = FixedGenerator()
    episode = Episode(QUESTION, "s3", error="retriever gone")
    reward, _ = score(GainBeyondRag(generator, cached(tmp_path, 0)), episode)
    assert reward == Reward(None)
    assert episode.error == "retriever gone"
    assert generator.asked == []


def test_precomputed_entries_are_the_ones_the_reward_finds(tmp_path: Path) -> None:
    generator = FixedGenerator()
    context = hits("p1", "p3")
    entry = asyncio.run(naive_rag_entry(QUESTION, context, generator, None))
    assert entry.key == naive_rag_key(QUESTION, context, generator, None)
    assert entry.key != naive_rag_key(QUESTION, context[::-1], generator, None)
    assert (entry.question, entry.score, entry.em_score) == ("Capital of France?", 1, 0)
    assert entry.fingerprint == scoring_fingerprint(generator, None)
    cache = RagCache.open(tmp_path / "c.jsonl")
    cache.put(entry)
    assert score(GainBeyondRag(generator, cache))[0].value == 0.0


def test_a_failed_precomputation_gives_no_entry() -> None:
    generator = FixedGenerator(InfrastructureError("gone"))
    with pytest.raises(InfrastructureError):
        asyncio.run(naive_rag_entry(QUESTION, (), generator, None))


def test_unsolved_drops_solved_and_closed_questions_and_keeps_the_order(tmp_path: Path) -> None:
    cache = cached(tmp_path, 1)
    cache.put(RagEntry("f", "nq", "Failed?", "-", 0, 0, "fixed | span"))
    kept = [
        Question("q4", "Failed?", ("x",), source="nq"),
        Question("q5", "Not in the cache", ("nobody",), source="nq"),
        Question("q6", "Capital of France", ("Paris",), source="hotpotqa"),
    ]
    closed = [
        Question(f"c{n}", f"Is it {n}", ("x", answer), source="nq")
        for n, answer in enumerate(["yes", "No", "TRUE", " false"])
    ]
    assert unsolved([kept[0], QUESTION, *closed, *kept[1:]], cache) == kept
    assert unsolved([QUESTION], cache, "fixed | span") == []
    assert unsolved([QUESTION], cache, "other | span") == [QUESTION]


@pytest.mark.parametrize(
    ("context", "value", "recall"),
    [((), 0.0, 0.0), (("p2", "p7"), 0.0, 0.5), (("p9", "p2", "p1"), 1.0, 1.0)],
)
def test_context_recall(context: tuple[str, ...], value: float, recall: float) -> None:
    reward, _ = score(ContextRecall(), Episode(QUESTION, "s3", context=hits(*context)))
    assert reward == Reward(value, {"recall": recall})


def test_context_recall_needs_gold_passages() -> None:
    with pytest.raises(InputError, match=r"'q': field \"supporting_ids\" is empty"):
        score(ContextRecall(), Episode(Question("q", "t", ("a",)), "s3"))


def test_context_recall_leaves_failed_episodes_out() -> None:
    reward, _ = score(ContextRecall(), Episode(QUESTION, "s3", error="gone"))
    assert reward == Reward(None)
