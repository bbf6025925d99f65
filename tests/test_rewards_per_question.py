"""Rewards that the questions choose, from the row in a file to the number."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from searchrl.agents.episode import Episode
from searchrl.data.forms import read_dataset
from searchrl.data.jsonl import write_jsonl
from searchrl.data.questions import Question, read_questions
from searchrl.errors import InputError
from searchrl.experiment import Experiment
from searchrl.recipe_file import load_recipe
from tests.command_line import good

GUIDE: dict[str, Any] = {"data_source": "sample", "prompt": "Who?", "golden_answers": ["Ada Byron"]}
LINE: dict[str, Any] = {"id": "1", "question": "Who?", "golden_answers": ["Ada Byron"]}
FUNCTION = "tests.test_rewards_per_question:two"


def two(episode: Episode) -> float:
    return 2.0


def experiment(folder: Path, rows: list[dict[str, Any]], *sets: str) -> Experiment:
    write_jsonl(folder / "q.jsonl", rows)
    data = f"{{kind='files', corpus='c.jsonl', questions='{folder / 'q.jsonl'}'}}"
    service = "{kind='http', url='http://127.0.0.1:1/retrieve'}"
    own = (f"data.train={data}", f"data.test={data}", f"retriever={service}")
    recipe = load_recipe("tiny-search-r1-grpo", [*own, "reward.kind=per_question", *sets])
    return Experiment(recipe, folder)


def values(opened: Experiment, answer: str) -> list[float | None]:
    """What the answer is worth to every question."""
    reward = opened.reward()
    episodes = [
        Episode(question, "search_r1", answer=answer, answers_itself=True)
        for question in opened.train.questions
    ]
    return [asyncio.run(reward.score(episode)).value for episode in episodes]


def test_each_question_is_scored_as_it_asks(tmp_path: Path) -> None:
    names = ("exact_match", "f1_score", "sub_em", "custom")
    rows = [GUIDE | {"reward_model": name} for name in names]
    opened = experiment(tmp_path, rows, f"reward.function={FUNCTION}")
    assert values(opened, "the great Ada Byron") == [0.0, pytest.approx(0.8), 1.0, 2.0]
    assert values(opened, "Ada Byron") == [1.0, 1.0, 1.0, 2.0]


def test_one_that_asks_for_nothing_is_scored_by_exact_match(tmp_path: Path) -> None:
    opened = experiment(tmp_path, [LINE, LINE | {"id": "2", "reward": "f1"}])
    assert values(opened, "great Ada Byron") == [0.0, pytest.approx(0.8)]


def test_a_function_is_the_recipes_and_never_the_datas(tmp_path: Path) -> None:
    opened = experiment(tmp_path, [GUIDE | {"reward_model": "custom"}])
    with pytest.raises(InputError, match=r"'sample_1' wants .* reward\.function"):
        opened.reward()
    write_jsonl(tmp_path / "q.jsonl", [GUIDE | {"reward_model": "os:system"}])
    with pytest.raises(InputError, match=r"q\.jsonl:1: .*\"reward_model\": 'os:system' is none of"):
        read_dataset(tmp_path / "q.jsonl")
    write_jsonl(tmp_path / "q.jsonl", [LINE | {"reward": 1}])
    with pytest.raises(InputError, match=r"q\.jsonl:1: .*\"reward\": 1 is none of exact_match"):
        read_questions(tmp_path / "q.jsonl")


def test_an_episode_without_an_answer_earns_nothing(tmp_path: Path) -> None:
    opened = experiment(tmp_path, [GUIDE | {"reward_model": "f1_score"}])
    [question] = opened.train.questions
    scored = opened.reward().score(Episode(question, "search_r1", answers_itself=True))
    assert asyncio.run(scored).value == 0.0


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_what_a_question_asks_for_survives_conversion(name: str, tmp_path: Path) -> None:
    rows = [GUIDE | {"reward_model": "f1_score"}, GUIDE | {"reward_model": "exact_match"}]
    write_jsonl(tmp_path / "guide.jsonl", rows)
    good("data", "convert", tmp_path / "guide.jsonl", "--to", tmp_path / name)
    expected = [
        Question("sample_1", "Who?", ("Ada Byron",), "sample", reward="f1"),
        Question("sample_2", "Who?", ("Ada Byron",), "sample", reward="exact_match"),
    ]
    assert read_dataset(tmp_path / name) == expected


def test_a_question_without_one_is_written_as_before() -> None:
    assert "reward" not in Question("1", "Who?", ("Ada",)).to_row()
