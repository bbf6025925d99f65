"""Numbers as they are written, and text of others made harmless."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.reporting.numbers import (
    headline_percent,
    number,
    p_value,
    percent,
    points,
    tick_labels,
)
from searchrl.reporting.text import clean, snippet

SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (2.0, "2"),
        (0.012345, "0.0123"),
        (4.5, "4.5"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (38400, "38,400"),
        (-1.25, f"{MINUS}1.25"),
        (2.1e-7, "2.1e-07"),
        (-3e12, f"{MINUS}3.0e+12"),
        (math.nan, "\N{EN DASH}"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_other_numbers_read_well():
    assert percent(0.8432) == f"84.3{SPACE}%"
    assert percent(None) == "\N{EN DASH}"
    assert [headline_percent(v) for v in (0.0, 0.002, 0.844, 0.998, 1.0)] == [
        f"{text}{SPACE}%" for text in ("0", "0.2", "84", "99.8", "100")
    ]
    assert [points(v) for v in (0.672, -0.01, -0.00001)] == ["+67.2", f"{MINUS}1.0", "+0.0"]
    assert [p_value(v).replace(SPACE, " ") for v in (0.0321, 0.0)] == ["p = 0.032", "p < 0.001"]
    assert tick_labels([101.2, 101.4, 101.6]) == ["101.2", "101.4", "101.6"]
    assert tick_labels([-1000.0, 0.0, 1000.0]) == [f"{MINUS}1,000", "0", "1,000"]


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("a\x1b[31;1mred\x1b[0m b", "ared b"),
        ("\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jgone", "gone"),
        ("\x1b]unterminated stays", "unterminated stays"),
        ("\x1bcreset", "reset"),
        ("tab\tand\r\nline\rend", "tab\tand\nline\nend"),
        ("nul\x00 bell\x07 del\x7f", "nul bell del"),
        ("abc\u202edef", "abcdef"),
        ("\ud83dhalf", "\ufffdhalf"),
        ("żółw 乌龟 🐢 \u200d", "żółw 乌龟 🐢 \u200d"),
    ],
)
def test_clean_strips_what_could_act_and_nothing_else(dirty, expected):
    assert clean(dirty) == expected


@given(st.text(st.one_of(st.characters(), st.sampled_from("\x1b[]0;m\x07\x9b\x9d\x9c\\\ud800"))))
@settings(max_examples=150, deadline=None)
def test_clean_text_is_encodable_and_stays_clean(text):
    cleaned = clean(text)
    cleaned.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", cleaned)
    assert clean(cleaned) == cleaned


def test_clean_takes_linear_time_on_hostile_text():
    for hostile in ("\x1b]", "\x9d", "\x1b[", "\x1b[0", "\x1b]0;" + "a" * 50):
        assert "\x1b" not in clean(hostile * 40_000)


def test_snippet_breaks_at_a_word():
    assert snippet("one two\nthree", 9) == "one two…"
    assert snippet(" one\ttwo ") == "one two"
