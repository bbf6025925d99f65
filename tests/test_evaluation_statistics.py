"""Intervals, paired tests and the method table, against textbook values and brute force."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from searchrl.errors import InputError
from searchrl.evaluation import statistics
from searchrl.evaluation.datasets import compare_scores
from searchrl.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    wilson_interval,
)
from searchrl.evaluation.table import EpisodeScore, summarise
from searchrl.evaluation.written import to_json, to_markdown, to_rich_table


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    interval = wilson_interval(successes, n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)
    assert interval.mean == successes / n
    assert mean_interval([1.0] * successes + [0.0] * (n - successes)) == interval


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(case):
    successes, n = case
    interval = wilson_interval(successes, n)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    for end in (interval.low, interval.high):
        if 1e-9 < end < 1 - 1e-9:
            score = (interval.mean - end) ** 2 / (end * (1 - end) / n)
            assert score == pytest.approx(1.959964**2, rel=1e-5)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(successes, n)


def test_bootstrap_of_two_values_is_known_exactly():
    # The mean of two draws from {0, 2} is 0, 1, 2 with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 2.0]) == Interval(1.0, 0.0, 2.0, 2)


def test_bootstrap_agrees_with_every_resample_counted():
    values = [0.1, 0.4, 0.5, 2.0, 3.5, 9.0]
    means = [math.fsum(draw) / 6 for draw in itertools.product(values, repeat=6)]
    low, high = np.percentile(means, [2.5, 97.5])
    interval = bootstrap_interval(values)
    assert interval.low == pytest.approx(low, abs=0.08)
    assert interval.high == pytest.approx(high, abs=0.12)


@pytest.mark.parametrize("distinct", [7, 400])
def test_both_ways_of_resampling_approach_the_normal_interval(distinct):
    values = np.random.default_rng(5).integers(0, distinct, 400) / distinct
    interval = mean_interval(list(values))
    half = 1.959964 * values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, rel=0.02)
    assert interval.high == pytest.approx(values.mean() + half, rel=0.02)


def test_bootstrap_is_drawn_in_blocks_without_loss(monkeypatch):
    monkeypatch.setattr(statistics, "_BLOCK", 777)
    assert sum(statistics._blocks(10)) == statistics.RESAMPLES
    assert sum(statistics._blocks(10**9)) == statistics.RESAMPLES
    assert max(statistics._blocks(10)) == 77


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_mean_interval_holds_its_mean_and_stays_in_range(values):
    interval = mean_interval(values)
    assert interval.low <= interval.mean <= interval.high
    if not set(values) <= {0.0, 1.0}:
        assert min(values) - 1e-6 <= interval.low
        assert interval.high <= max(values) + 1e-6
    assert mean_interval(values) == interval


def test_seed_moves_only_the_ends():
    values = [math.sin(position) for position in range(50)]
    first, second = mean_interval(values, seed=1), mean_interval(values, seed=2)
    assert first.mean == second.mean
    assert first != second


def test_no_value_is_not_a_number_and_non_finite_is_refused():
    empty = mean_interval([])
    assert (math.isnan(empty.mean), math.isnan(empty.low), empty.n) == (True, True, 0)
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, math.nan])


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 0.0625),
        # Twice the lower tail of the binomial tables for n = 24 and 11 at one half.
        (15, 9, 0.307456),
        (9, 2, 0.0654297),
    ],
)
def test_mcnemar_gives_known_values(wins, losses, expected):
    assert mcnemar_exact(wins, losses) == pytest.approx(expected, rel=1e-5)
    assert mcnemar_exact(losses, wins) == mcnemar_exact(wins, losses)


@given(st.integers(0, 10), st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_mcnemar_agrees_with_tossing_every_coin(wins, losses):
    n = wins + losses
    counts = [math.comb(n, heads) for heads in range(n + 1)]
    extreme = sum(c for heads, c in enumerate(counts) if abs(2 * heads - n) >= abs(wins - losses))
    assert mcnemar_exact(wins, losses) == pytest.approx(extreme / 2**n)


def test_mcnemar_of_many_pairs_neither_overflows_nor_takes_long():
    assert mcnemar_exact(20_000, 1_000) == 0.0
    assert 0.3 < mcnemar_exact(10_000, 9_900) < 0.6


def test_sign_flip_counts_every_pattern_for_few_pairs():
    ours, theirs = [0.9, 0.5, 0.8, 0.2, 0.7], [0.1, 0.4, 0.9, 0.2, 0.3]
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    patterns = list(itertools.product((-1, 1), repeat=5))
    sums = [abs(sum(s * g for s, g in zip(p, gaps, strict=True))) for p in patterns]
    expected = sum(value >= abs(sum(gaps)) - 1e-12 for value in sums) / len(patterns)
    result = paired_difference(ours, theirs)
    assert result.p_value == pytest.approx(expected)
    assert result.difference == pytest.approx(0.24)


def test_sign_flip_sampled_is_close_to_exact(monkeypatch):
    generator = np.random.default_rng(1)
    gaps = generator.normal(0.1, 1.0, 13)
    exact = paired_difference(list(gaps), [0.0] * 13).p_value
    monkeypatch.setattr(statistics, "_EXACT_FLIPS", 0)
    sampled = paired_difference(list(gaps), [0.0] * 13).p_value
    assert 0.05 < exact < 0.95
    assert sampled == pytest.approx(exact, abs=0.02)


def test_paired_difference_uses_the_pairing():
    generator = random.Random(0)
    theirs = [generator.random() for _ in range(60)]
    ours = [value + 0.05 + 0.01 * generator.random() for value in theirs]
    paired = paired_difference(ours, theirs)
    assert 0.05 < paired.low < paired.difference < paired.high < 0.06
    assert paired.p_value < 0.001
    shuffled = paired_difference(ours, sorted(theirs))
    assert shuffled.high - shuffled.low > 10 * (paired.high - paired.low)


def test_paired_difference_turns_round_with_its_arguments():
    ours, theirs = [1.0, 1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0, 1.0]
    forward, backward = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert forward.difference == -backward.difference == pytest.approx(0.4)
    assert forward.p_value == backward.p_value == 0.5
    assert paired_difference(ours, ours).p_value == 1.0


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 0.0])])
def test_paired_difference_refuses_lists_that_do_not_pair(ours, theirs):
    with pytest.raises(ValueError, match="pair"):
        paired_difference(ours, theirs)


def _score(question: int, method: str, accuracy: float, **changes) -> EpisodeScore:
    score = EpisodeScore(
        question_id=f"q{question}",
        method=method,
        source="synthwiki",
        accuracy=accuracy,
        em=accuracy,
        f1=0.5 + accuracy / 2,
        gold_recall=0.25,
        searches=2,
        passages=3,
        context_tokens=1200,
        seconds=0.5,
    )
    return replace(score, **changes)


def _scores() -> list[EpisodeScore]:
    rag = [_score(q, "rag", float(q < 2), searches=0) for q in range(10)]
    s3 = [_score(q, "s3", float(q < 9)) for q in range(10)]
    return rag + s3


def test_summary_has_the_written_form():
    summary = to_json(compare_scores(_scores(), several=False))
    json.dumps(summary, allow_nan=False)
    assert list(summary["methods"]) == ["rag", "s3"]
    s3 = summary["methods"]["s3"]
    wilson = wilson_interval(9, 10)
    assert s3["accuracy"] == 0.9
    assert s3["ci95"] == [round(wilson.low, 6), round(wilson.high, 6)]
    assert (s3["n"], s3["failed"]) == (10, 0)
    assert s3["f1"]["mean"] == pytest.approx(0.95)
    assert s3["searches"] == {"mean": 2.0, "ci95": [2.0, 2.0]}
    assert s3["vs_rag"]["difference"] == pytest.approx(0.7)
    assert s3["vs_rag"]["p_value"] == mcnemar_exact(7, 0)
    assert s3["vs_rag"]["n"] == 10
    assert summary["methods"]["rag"]["vs_rag"] is None


def test_failed_episodes_are_counted_and_in_no_mean_or_pair():
    scores = _scores()
    scores[0] = replace(scores[0], failed=True, accuracy=math.nan, seconds=1e9)
    scores[19] = replace(scores[19], failed=True, accuracy=math.nan)
    rag, s3 = summarise(scores)
    assert (rag.failed, rag.accuracy.n, rag.accuracy.mean) == (1, 9, pytest.approx(1 / 9))
    assert rag.seconds.high == pytest.approx(0.5)
    assert (s3.failed, s3.accuracy.mean) == (1, 1.0)
    assert s3.vs_rag is not None
    assert s3.vs_rag.n == 8


def test_method_with_no_finished_episode_is_null_and_is_not_compared():
    scores = [replace(s, failed=s.method == "s3") for s in _scores()]
    comparison = compare_scores(scores, several=False)
    s3 = to_json(comparison)["methods"]["s3"]
    assert (s3["accuracy"], s3["ci95"], s3["n"], s3["failed"]) == (None, [None, None], 0, 10)
    assert s3["vs_rag"] is None
    assert "NaN" not in to_markdown(comparison)
    assert "nan" not in to_markdown(comparison)


def test_without_rag_nothing_is_compared():
    (s3,) = summarise(score for score in _scores() if score.method == "s3")
    assert s3.vs_rag is None


def test_pairs_follow_the_question_not_the_order():
    scores = _scores()
    assert summarise(scores[:10] + scores[:9:-1])[1] == summarise(scores)[1]


def test_same_id_in_two_sources_is_two_questions_but_not_in_one():
    other = [replace(score, source="hotpotqa") for score in _scores()]
    assert summarise(_scores() + other)[0].accuracy.n == 20
    assert list(compare_scores(_scores() + other, several=True).datasets) == [
        "synthwiki",
        "hotpotqa",
    ]
    with pytest.raises(InputError, match=r"'rag' has question 'q0' of 'synthwiki' twice"):
        summarise(_scores() + _scores())


def test_questions_without_gold_passages_leave_the_recall_column_out():
    scores = [replace(score, gold_recall=None) for score in _scores()]
    comparison = compare_scores(scores, several=False)
    assert to_json(comparison)["methods"]["s3"]["gold_recall"]["mean"] is None
    assert "Gold recall" not in to_markdown(comparison)
    assert "Gold recall %" in to_markdown(compare_scores(_scores(), several=False))


def test_markdown_rows_are_aligned_and_escaped():
    scores = [replace(s, method="a|b" if s.method == "s3" else s.method) for s in _scores()]
    lines = to_markdown(compare_scores(scores, several=False)).splitlines()
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}
    assert lines[3].startswith("| a\\|b | 10 | 90.0 (59.6 to 98.2) | +70.0 (+40.0 to +100.0) |")
    assert "| 1,200 (1,200 to 1,200) | 0.50 (0.50 to 0.50) | 0 |" in lines[3]


def test_terminal_table_takes_names_literally():
    hostile = "[red]s3\x1b[2J"
    scores = [replace(s, method=hostile if s.method == "s3" else s.method) for s in _scores()]
    console = Console(width=240, force_terminal=False)
    with console.capture() as capture:
        console.print(to_rich_table(compare_scores(scores, several=False)))
    shown = capture.get()
    assert "[red]s3?[2J" in shown
    assert "\x1b" not in shown
    assert "90.0" in shown
    assert "59.6–98.2" in shown
