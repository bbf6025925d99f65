"""Rewards of methods that answer themselves, and of a user's own function."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.agents.episode import Action, ActionKind, Episode, Reward, Turn
from searchrl.data.passages import Passage
from searchrl.data.questions import Question
from searchrl.errors import InfrastructureError, InputError
from searchrl.retrieval.protocol import Hit
from searchrl.rewards.custom import CustomReward, load_function
from searchrl.rewards.outcome import OutcomeMetric, OutcomeReward
from searchrl.rewards.protocol import RewardFunction
from searchrl.rewards.search_r1_format import SearchR1FormatReward, valid_structure

GOLD = "Beijing"
METRICS: tuple[OutcomeMetric, ...] = ("exact_match", "f1", "sub_em")
# s searches, S searches badly formed, i and I are invalid, a and A answer.
FORMS = {
    "s": Turn(Action(ActionKind.SEARCH, query="q"), well_formed=True),
    "S": Turn(Action(ActionKind.SEARCH, query="q"), well_formed=False),
    "i": Turn(Action(ActionKind.INVALID), well_formed=True),
    "I": Turn(Action(ActionKind.INVALID), well_formed=False),
    "a": Turn(Action(ActionKind.ANSWER), well_formed=True),
    "A": Turn(Action(ActionKind.ANSWER), well_formed=False),
}


def episode(
    answer: str | None,
    form: str = "a",
    found: str = "nothing",
    golds: Sequence[str] = (GOLD,),
    itself: bool = True,
) -> Episode:
    turns = [
        Turn(turn.action, (Hit(Passage("p", "T", found), 1.0),), well_formed=turn.well_formed)
        if turn.action.kind is ActionKind.SEARCH
        else turn
        for turn in (FORMS[letter] for letter in form)
    ]
    question = Question("q", "What is the capital?", tuple(golds))
    return Episode(question, "search_r1", turns=turns, answer=answer, answers_itself=itself)


def score(reward: RewardFunction, what: Episode) -> Reward:
    return asyncio.run(reward.score(what))


def value(reward: RewardFunction, what: Episode) -> float | None:
    return score(reward, what).value


class Echo:
    """A generator that says one thing, or fails."""

    fingerprint = "echo"

    def __init__(self, says: str | None) -> None:
        self._says = says

    async def answer(self, question: str, context: Sequence[Hit]) -> str:
        if self._says is None:
            raise InfrastructureError("generator\nis gone")
        return self._says


ALL: list[RewardFunction] = [
    *(OutcomeReward(metric) for metric in METRICS),
    SearchR1FormatReward(),
    SearchR1FormatReward(0.5, 0.4, 0.3),
    CustomReward("own:function", lambda what: float(what.answer == GOLD)),
]


@pytest.mark.parametrize("reward", ALL)
@pytest.mark.parametrize("form", ["", "I", "s", "ss", "sI", "i"])
@pytest.mark.parametrize("golds", [(GOLD,), ("and",), ("", GOLD), ("The",)])
def test_without_an_answer_every_reward_is_zero(
    reward: RewardFunction, form: str, golds: Sequence[str]
) -> None:
    what = episode(None, form, found=f"{GOLD} and the", golds=golds)
    assert value(reward, what) == 0
    assert what.answer is None


@pytest.mark.parametrize("reward", ALL)
def test_a_failed_episode_has_no_reward(reward: RewardFunction) -> None:
    what = episode(GOLD)
    what.fail(InfrastructureError("gone"))
    assert value(reward, what) is None


@pytest.mark.parametrize(
    ("metric", "answer", "expected"),
    [
        ("exact_match", "the beijing.", 1),
        ("exact_match", "Beijing, China", 0),
        ("f1", "Beijing, China", 2 / 3),
        ("f1", "China", 0),
        ("sub_em", "Beijing, China", 1),
        ("sub_em", "Beij", 0),
        ("exact_match", "", 0),
    ],
)
def test_metrics(metric: OutcomeMetric, answer: str, expected: float) -> None:
    assert value(OutcomeReward(metric), episode(answer)) == pytest.approx(expected)


def test_a_generator_answers_for_methods_that_do_not() -> None:
    what = episode(None, itself=False)
    scored = score(OutcomeReward("exact_match", Echo(GOLD)), what)
    assert (scored.value, what.answer) == (1, GOLD)
    assert scored.parts == {"answered": 1, "em": 1, "f1": 1}
    with pytest.raises(ValueError, match="needs a generator"):
        score(OutcomeReward("exact_match"), episode(None, itself=False))


def test_a_failed_generator_is_no_reward() -> None:
    for reward in (OutcomeReward("f1", Echo(None)), CustomReward("m:f", lambda e: 1.0, Echo(None))):
        what = episode(None, itself=False)
        assert value(reward, what) is None
        assert what.error == "generator is gone"


# The original's table (its constants 0.2, 0.1, 0), in our terms.
@pytest.mark.parametrize(
    ("answer", "form", "found", "expected"),
    [
        ("Beijing", "a", "", 1.0),
        ("Beijing", "sa", "", 1.0),
        ("Beijing", "ssssa", "", 1.0),
        ("Beijing", "A", "", 0.8),
        ("Beijing", "Sa", "", 0.8),
        ("Beijing", "sA", "", 0.8),
        ("Beijing", "Ia", "", 0.8),
        ("Beijing", "ia", "", 0.8),
        ("Lyon", "a", "", 0.2),
        ("Lyon", "sa", "It is Beijing.", 0.2),
        ("Lyon", "A", "", 0.1),
        ("Lyon", "SIa", "It is Beijing.", 0.1),
        ("", "a", "", 0.2),
        (None, "ss", "It is Beijing.", 0.0),
        (None, "I", "", 0.0),
    ],
)
def test_format_reward(answer: str | None, form: str, found: str, expected: float) -> None:
    assert value(SearchR1FormatReward(), episode(answer, form, found)) == pytest.approx(expected)


def test_a_retrieved_gold_answer_counts_beside_a_valid_form_and_a_wrong_answer() -> None:
    reward = SearchR1FormatReward(structure=0.2, final=0.1, retrieval=0.3)
    assert value(reward, episode("Lyon", "sa", "in BEIJING.")) == pytest.approx(0.5)
    assert value(reward, episode("Lyon", "sa", "in Lyon.")) == pytest.approx(0.2)
    assert value(reward, episode("Lyon", "sA", "in Beijing.")) == pytest.approx(0.1)
    assert value(reward, episode("Beijing", "sa", "in Beijing.")) == 1
    parts = score(reward, episode("Lyon", "sa", "in Beijing.")).parts
    assert (parts["valid_structure"], parts["gold_retrieved"], parts["em"]) == (1, 1, 0)
    # A gold answer that normalises to nothing is retrieved nowhere.
    assert not score(reward, episode("Lyon", "sa", "x", golds=("The",))).parts["gold_retrieved"]


@given(st.text(alphabet="sSiIaA", max_size=8))
def test_structure_is_a_regular_language(form: str) -> None:
    import re

    assert valid_structure(episode(None, form)) == bool(re.fullmatch("s*a", form))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_rewards.py").write_text(
        "from searchrl.agents.episode import Reward\n"
        "NUMBER = 3\n"
        "def length(episode): return len(episode.answer or '')\n"
        "def parts(episode): return Reward(0.5, {'half': 0.5})\n"
        "async def later(episode): return 0.25\n"
        "def text(episode): return 'good'\n"
        "def infinite(episode): return float('inf')\n"
        "def nothing(episode): return None\n"
        "def two(episode, other): return 1.0\n"
    )
    (tmp_path / "broken_rewards.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("own_rewards", "broken_rewards"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "own_rewards"


def own(module: str, name: str) -> CustomReward:
    return CustomReward(f"{module}:{name}", load_function(f"{module}:{name}"))


def test_a_function_of_ones_own(module: str) -> None:
    assert value(own(module, "length"), episode("Lyon")) == 4
    assert score(own(module, "parts"), episode("x")) == Reward(0.5, {"half": 0.5})
    assert value(own(module, "later"), episode("x")) == 0.25


@pytest.mark.parametrize("name", ["text", "infinite", "nothing"])
def test_a_function_has_to_return_a_number(module: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"reward.function: own_rewards:{name} returned .*finite"):
        score(own(module, name), episode("x"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_rewards", "not of the form module:function"),
        (":length", "not of the form module:function"),
        ("own_rewards:", "not of the form module:function"),
        ("not_there:length", "module 'not_there' cannot be imported"),
        ("broken_rewards:length", "'broken_rewards' cannot be imported .*nowhere_to_be_found"),
        ("own_rewards:widht", "own_rewards has no function 'widht'"),
        ("own_rewards:NUMBER", "own_rewards has no function 'NUMBER'"),
        ("own_rewards:two", "has to take one episode .*other"),
    ],
)
def test_a_function_that_cannot_be_used_is_named(module: str, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_function(name)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_users_function_is_theirs() -> None:
    def broken(what: Any) -> float:
        return math.log(-1)

    with pytest.raises(ValueError, match=r"math domain error|positive"):
        score(CustomReward("m:broken", broken), episode("x"))
