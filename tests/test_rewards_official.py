"""The official scripts: equal on every recorded row, and on the quirks that set them apart."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from searchrl.rewards import text
from searchrl.rewards.official import OFFICIAL

VECTORS = (
    Path(__file__).resolve().parents[1].parent
    / "shared"
    / "data"
    / "scores"
    / "answer_vectors_dev.jsonl.gz"
)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    if not VECTORS.is_file():
        pytest.skip("shared data is absent")
    with gzip.open(VECTORS, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name != "mirage_accuracy"])
def test_equals_the_official_script_on_every_row(name: str, rows: list[dict[str, Any]]) -> None:
    metric = OFFICIAL[name]
    wrong = [
        (row["pred"], row["golds"], row[name])
        for row in rows
        # The recorded values keep six decimals.
        if abs(round(metric(row["pred"], row["golds"]), 6) - row[name]) > 1e-12
    ]
    assert len(rows) == 3044
    assert wrong == []


@pytest.mark.parametrize(
    ("own", "official"),
    [
        (text.exact_match, "squad_em"),
        (text.f1, "squad_f1"),
        (text.substring_match, "searchr1_subem"),
        (text.answer_span, "s3_answer_span"),
    ],
)
def test_default_metrics_equal_theirs_on_golds_with_content(
    own: Any, official: str, rows: list[dict[str, Any]]
) -> None:
    checked = [row for row in rows if all(map(text.normalise, row["golds"]))]
    assert len(checked) > 3000
    for row in checked:
        assert float(own(row["pred"], row["golds"])) == OFFICIAL[official](
            row["pred"], row["golds"]
        )


@pytest.mark.parametrize(
    ("name", "prediction", "golds", "expected"),
    [
        # A gold that normalises to nothing.
        ("squad_em", "A", ["The"], 1.0),
        ("searchr1_em", "", ["the"], 1.0),
        ("searchr1_subem", "Lyon", ["The"], 1.0),
        ("s3_answer_span", "Lyon", ["The The"], 1.0),
        ("squad_f1", "A", ["The"], 0.0),
        ("musique_f1", "A", ["The"], 1.0),
        ("squad2_f1", "A", ["The"], 1.0),
        ("squad2_f1", "Lyon", ["The"], 0.0),
        # SQuAD v2 drops such golds where another is left; the others keep them.
        ("squad2_em", "the", ["The", "Paris"], 0.0),
        ("squad2_f1", "the", ["The", "Paris"], 0.0),
        ("musique_em", "the", ["The", "Paris"], 1.0),
        ("musique_f1", "the", ["The", "Paris"], 1.0),
        # HotpotQA and 2Wiki give no credit for a yes among other words, nor for one missed.
        ("squad_f1", "yes it is", ["yes"], 0.5),
        ("hotpot_f1", "yes it is", ["yes"], 0.0),
        ("hotpot_f1", "yes", ["yes it is"], 0.0),
        ("wiki2_f1", "no", ["no one"], 0.0),
        ("hotpot_f1", "Yes!", ["yes"], 1.0),
        # TriviaQA turns punctuation, its own quotes included, into spaces.
        ("triviaqa_em", "Jean-Luc", ["jean luc"], 1.0),
        ("squad_em", "Jean-Luc", ["jean luc"], 0.0),
        ("triviaqa_em", "snake_case", ["snake case"], 1.0),
        ("triviaqa_em", "\u2018Help\u2019", ["help"], 1.0),
        ("squad_em", "\u2018Help\u2019", ["help"], 0.0),
        # The best gold counts.
        ("squad_f1", "new york city", ["boston", "new york"], 0.8),
    ],
)
def test_quirks(name: str, prediction: str, golds: list[str], expected: float) -> None:
    assert OFFICIAL[name](prediction, golds) == pytest.approx(expected, abs=1e-12)
