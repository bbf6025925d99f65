"""The text metrics: their properties, and where they leave the official scripts on purpose."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.rewards.text import (
    answer_span,
    contains_run,
    dpr_tokens,
    exact_match,
    f1,
    has_answer,
    normalise,
    substring_match,
    token_f1,
)

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

words = st.lists(st.sampled_from(["red", "blue", "green", "one", "two"]), min_size=1, max_size=8)
texts = st.text(max_size=40)
METRICS = [exact_match, f1, substring_match, answer_span]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\tsat!", "cat sat"),
        ("A theatre in Athens", "theatre in athens"),
        ("U.S.A.", "usa"),
        ("the-end", "theend"),
        ("“The End”", "“ end”"),
        ("The", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(texts)
def test_normalise_leaves_no_upper_case_ascii_punctuation_or_outer_space(text: str) -> None:
    result = normalise(text)
    assert result == result.strip()
    assert not any("A" <= character <= "Z" for character in result)
    assert not any(ord(c) < 128 and not c.isalnum() and c != " " for c in result if c.isprintable())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zürich's 1st", ["zu\u0308rich", "'", "s", "1st"]),
        ("a_b", ["a", "_", "b"]),
        ("x\u200by\u00a0z", ["x", "y", "z"]),
        ("½ €5", ["½", "€", "5"]),
        ("", []),
    ],
)
def test_dpr_tokens(text: str, expected: list[str]) -> None:
    assert dpr_tokens(text) == expected


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_a_run_is_found_wherever_it_stands(
    before: list[int], run: list[int], after: list[int]
) -> None:
    texts = [list(map(str, part)) for part in (before, run, after)]
    assert contains_run(texts[0] + texts[1] + texts[2], texts[1])


def test_a_run_must_be_contiguous_and_in_order() -> None:
    assert not contains_run(["new", "big", "york"], ["new", "york"])
    assert not contains_run(["york", "new"], ["new", "york"])
    assert not contains_run(["new"], ["new", "york"])


@given(words, words)
def test_token_f1_is_symmetric_and_bounded(left: list[str], right: list[str]) -> None:
    assert token_f1(left, right) == pytest.approx(token_f1(right, left), abs=1e-15)
    assert 0.0 <= token_f1(left, right) <= 1.0
    assert token_f1(left, left) == 1.0


def test_token_f1_counts_tokens_as_often_as_both_sides_hold_them() -> None:
    assert token_f1(["a", "a", "b"], ["a", "c"]) == pytest.approx(0.4)


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_exact_match_implies_every_other_metric(prediction: str, answers: list[str]) -> None:
    if exact_match(prediction, answers):
        assert f1(prediction, answers) == 1.0
        assert substring_match(prediction, answers)


@given(words, st.lists(words, min_size=1, max_size=3))
def test_metrics_nest_on_plain_words(prediction: list[str], answers: list[list[str]]) -> None:
    text, golds = " ".join(prediction), [" ".join(answer) for answer in answers]
    if exact_match(text, golds):
        assert answer_span(text, golds)
    if answer_span(text, golds):
        assert substring_match(text, golds)
        assert f1(text, golds) > 0


@given(words, words, words)
def test_a_span_is_found_inside_any_sentence(
    before: list[str], answer: list[str], after: list[str]
) -> None:
    assert answer_span(" ".join([*before, *answer, *after]), [" ".join(answer)])


@pytest.mark.parametrize("gold", ["The", "a", "?!", "", " ", "An the", "\u200b"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_gold_without_content_matches_only_its_equal(metric: object, gold: str) -> None:
    assert callable(metric)
    assert metric("Paris is the capital", [gold]) == 0
    assert metric("the." if gold != "the." else "a", [gold]) == 0
    assert metric(gold, [gold]) == 1
    assert metric("Paris", [gold, "paris"]) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_giving_up_scores_zero(metric: object) -> None:
    assert callable(metric)
    assert metric("", ["Paris", "the"]) == 0


def test_a_span_is_whole_tokens_where_a_substring_is_characters() -> None:
    assert substring_match("Parisian", ["Paris"])
    assert not answer_span("Parisian", ["Paris"])
    assert answer_span("It was in Paris, I think", ["paris"])


def test_has_answer_reads_passages_as_they_stand() -> None:
    assert has_answer("He left the U.S. Army.", ["U.S. Army"])
    assert not has_answer("He left the US Army.", ["U.S. Army"])
    assert has_answer("Zu\u0308rich", ["ZÜRICH"])
    assert not has_answer("anything", ["", " "])


def test_has_answer_equals_dpr_on_real_passages() -> None:
    vectors = DATA / "scores" / "has_answer_dev.jsonl.gz"
    corpus = DATA / "replay" / "r1_searcher" / "corpus.jsonl.gz"
    if not vectors.is_file() or not corpus.is_file():
        pytest.skip("shared data is absent")
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        passages = {row["id"]: row["contents"].partition("\n")[2] for row in rows}
    with gzip.open(vectors, "rt", encoding="utf-8") as lines:
        expected = [json.loads(line) for line in lines]
    wrong = [
        row
        for row in expected
        if has_answer(passages[row["doc_id"]], row["answers"]) != row["has_answer"]
    ]
    assert len(expected) == 6000
    assert wrong == []
