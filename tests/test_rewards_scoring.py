"""Scoring a prediction file: every question exactly once, and errors that name the line or id."""

from __future__ import annotations

from pathlib import Path

import pytest

from searchrl.data.questions import Question
from searchrl.errors import InputError
from searchrl.rewards.official import OFFICIAL
from searchrl.rewards.scoring import DEFAULT_METRICS, read_predictions, score_predictions

QUESTIONS = [
    Question("q1", "Capital of France?", ("Paris",)),
    Question("q2", "Who wrote it?", ("Jane Austen", "Austen")),
    Question("q3", "Which band?", ("The The",)),
]
PREDICTIONS = {"q3": "Lyon", "q1": "paris.", "q2": "It was Austen"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_and_means_in_the_order_of_the_questions() -> None:
    table = score_predictions(PREDICTIONS, QUESTIONS)
    assert [row.to_row() for row in table.rows] == [
        {"id": "q1", "em": 1.0, "f1": 1.0, "sub_em": 1.0, "span": 1.0},
        {"id": "q2", "em": 0.0, "f1": 0.5, "sub_em": 1.0, "span": 1.0},
        {"id": "q3", "em": 0.0, "f1": 0.0, "sub_em": 0.0, "span": 0.0},
    ]
    assert table.means == pytest.approx({"em": 1 / 3, "f1": 0.5, "sub_em": 2 / 3, "span": 2 / 3})
    assert tuple(table.means) == DEFAULT_METRICS


def test_an_official_script_is_asked_for_by_name() -> None:
    table = score_predictions(PREDICTIONS, QUESTIONS, ["span", *OFFICIAL])
    assert table.rows[2].scores["span"] == 0.0
    assert table.rows[2].scores["s3_answer_span"] == 1.0
    assert table.rows[1].scores["triviaqa_f1"] == 0.5


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'rouge' is not known; choose from em, f1, .*squad2_f1"):
        score_predictions(PREDICTIONS, QUESTIONS, ["rouge"])


def test_missing_predictions_are_named_up_to_three() -> None:
    with pytest.raises(InputError, match=r"3 of 3 questions have no prediction: 'q1', 'q2', 'q3';"):
        score_predictions({}, QUESTIONS)
    more = [*QUESTIONS, Question("q4", "And?", ("x",))]
    with pytest.raises(InputError, match=r"4 of 4 .*'q1', 'q2', 'q3', \.\.\.;"):
        score_predictions({}, more)


def test_unknown_ids_are_named() -> None:
    with pytest.raises(InputError, match=r"1 predictions have an id that no question has: 'q9'"):
        score_predictions({**PREDICTIONS, "q9": "x"}, QUESTIONS)


def test_no_question_is_an_error() -> None:
    with pytest.raises(InputError, match="no question"):
        score_predictions({}, [])


def test_predictions_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        '{"id": "q1", "prediction": "a", "note": 1}\n\n{"id": 2, "prediction": ""}\n',
    )
    assert read_predictions(path) == {"q1": "a", "2": ""}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "p.jsonl:2: not valid JSON"),
        ("[]", "p.jsonl:2: expected a JSON object"),
        ('{"prediction": "a"}', 'p.jsonl:2: field "id"'),
        ('{"id": true, "prediction": "a"}', 'p.jsonl:2: field "id"'),
        ('{"id": "b"}', 'p.jsonl:2: field "prediction"'),
        ('{"id": "b", "prediction": null}', 'p.jsonl:2: field "prediction"'),
        ('{"id": "b", "prediction": ["x"]}', 'p.jsonl:2: field "prediction"'),
        ('{"id": "a", "prediction": "other"}', "p.jsonl:2: id 'a' appears twice"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "p.jsonl", '{"id": "a", "prediction": "x"}\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        read_predictions(tmp_path / "none.jsonl")
