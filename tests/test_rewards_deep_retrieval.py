"""DeepRetrieval's published reward tables."""

from __future__ import annotations

import asyncio

import pytest

from searchrl.agents.episode import Action, ActionKind, Episode, Turn
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.rewards.deep_retrieval import DeepRetrievalReward, Table
from tests.fakes import FailingRetriever, ListRetriever

GOLD = tuple(f"g{n}" for n in range(20))


def episode(query: str | None, well_formed: bool = True, gold: tuple[str, ...] = GOLD) -> Episode:
    action = Action(ActionKind.SEARCH, query=query) if query else Action(ActionKind.INVALID)
    turn = Turn(action, well_formed=well_formed)
    question = Question("q", "Who?", ("Ada Lovelace",), gold_ids=gold)
    return Episode(question, "deep_retrieval", turns=[turn])


def ranking(first: int | None) -> ListRetriever:
    """A retriever whose passage of that rank is the first to hold the answer."""
    return ListRetriever(
        [
            Passage(f"p{rank}", "T", "by ADA LOVELACE." if rank == first else "by Ada, Lovelace")
            for rank in range(1, 3002)
        ]
    )


def recalling(found: int) -> ListRetriever:
    """A retriever that finds so many of the twenty gold passages."""
    return ListRetriever([Passage(f"g{n}", "T", "x") for n in range(found)])


def value(retriever: ListRetriever, what: Episode, table: Table = "evidence") -> float | None:
    return asyncio.run(DeepRetrievalReward(retriever, table).score(what)).value


@pytest.mark.parametrize(
    ("rank", "worth"),
    [
        *((1, 5), (5, 5), (6, 4), (20, 4), (21, 2), (50, 2), (51, 1), (100, 1)),
        *(
            (101, 0.5),
            (1000, 0.5),
            (1001, 0.1),
            (2999, 0.1),
            (3000, 0.1),
            (3001, -3.5),
            (None, -3.5),
        ),
    ],
)
def test_evidence_is_worth_its_rank(rank: int | None, worth: float) -> None:
    assert value(ranking(rank), episode("a")) == 1 + worth
    assert value(ranking(rank), episode("a", well_formed=False)) == -4 + worth


@pytest.mark.parametrize(
    ("found", "worth"),
    [
        *((20, 5), (14, 5), (13, 4), (10, 4), (9, 3), (8, 3), (7, 1), (6, 1)),
        *((5, 0.5), (2, 0.5), (1, 0.1), (0, -3.5)),
    ],
)
def test_recall_is_worth_its_band(found: int, worth: float) -> None:
    assert value(recalling(found), episode("a"), "recall") == 1 + worth


def test_ndcg_is_added_to_the_form() -> None:
    assert value(recalling(20), episode("a"), "ndcg") == pytest.approx(1.1)
    second = ListRetriever([Passage("x", "T", "x"), Passage("g0", "T", "x")])
    assert value(second, episode("a", gold=("g0",)), "ndcg") == pytest.approx(
        0.1 + 0.6309, abs=1e-4
    )
    assert value(recalling(0), episode("a"), "ndcg") == 0
    assert value(recalling(20), episode("a", well_formed=False), "ndcg") == -2
    assert value(recalling(20), episode(None), "ndcg") == -2


@pytest.mark.parametrize("well_formed", [True, False])
def test_without_a_query_it_is_the_error(well_formed: bool) -> None:
    retriever = ranking(1)
    assert value(retriever, episode(None, well_formed)) == (1 if well_formed else -4) - 4
    assert retriever.calls == []
    assert value(retriever, Episode(episode("a").question, "deep_retrieval")) == -8


def test_failures_and_missing_gold() -> None:
    what = episode("a")
    assert value(FailingRetriever([]), what) is None
    assert what.error == "retriever at example:2 did not answer"
    what = episode("a")
    what.fail(InfrastructureError("gone"))
    assert value(ranking(1), what) is None
    with pytest.raises(InputError, match='"supporting_ids" is empty; the reward table "recall"'):
        value(ranking(1), episode("a", gold=()), "recall")
