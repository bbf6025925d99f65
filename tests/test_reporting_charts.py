"""Charts: contrast, ticks, thinned lines, lengths of bars."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.reporting.svg import (
    DARK,
    LIGHT,
    MAX_POINTS,
    Bar,
    bar_chart,
    line_chart,
    nice_ticks,
    thin,
)


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_colours_keep_the_contrast_that_wcag_asks(palette):
    def contrast(colour: str) -> float:
        pair = sorted((_luminance(palette[colour]), _luminance(palette["page"])))
        return (pair[1] + 0.05) / (pair[0] + 0.05)

    assert min(contrast(name) for name in ("ink", "muted", "accent")) >= 4.5
    assert contrast("bar") >= 3


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_even_and_inside(low, width):
    ticks = nice_ticks(low, low + width)
    assert 2 <= len(ticks) <= 6
    slack = 1e-6 * max(abs(low), width)
    assert all(low - slack <= tick <= low + width + slack for tick in ticks)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300))
@settings(max_examples=40, deadline=None)
def test_any_values_can_be_drawn(values):
    series = {"a": list(enumerate(values)), "<b>": [(0.0, 1.0)]}
    for chosen in (series, {"a": series["a"]}):
        drawing = line_chart(chosen, width=320, height=200, x_label="step", y_label="loss")
        source = drawing.standalone()
        ElementTree.fromstring(source)
        assert not re.search(r"\bnan\b|\binf\b", source.split("</style>")[1].split("<title>")[0])


def test_thinning_keeps_the_ends_and_the_mean():
    series = [(float(step), math.sin(step)) for step in range(10_001)]
    thinned = thin(series)
    assert len(thinned) <= MAX_POINTS
    assert thinned[0] == series[0]
    assert thinned[-1][0] == series[-1][0]
    assert thin(series[:MAX_POINTS]) == series[:MAX_POINTS]
    assert thin([(float(s), 3.0) for s in range(500)])[50][1] == 3.0


def _lengths(source: str, name: str) -> Iterator[float]:
    root = ElementTree.fromstring(source)
    yield from (float(e.attrib["width"]) for e in root.iter() if e.attrib.get("class") == name)


def test_bars_are_as_long_as_their_values():
    bars = [Bar("a", 0.25, 0.2, 0.3), Bar("b", 0.5, 0.4, 0.6), Bar("c", 1.0, 0.9, 1.0, True)]
    source = bar_chart(bars, width=720, axis_label="Accuracy").inline()
    (accent,) = _lengths(source, "accent")
    plain = list(_lengths(source, "bar"))
    assert plain == pytest.approx([accent / 4, accent / 2])
    root = ElementTree.fromstring(source)
    whiskers = [
        (float(e.attrib["x1"]), float(e.attrib["x2"]))
        for e in root.iter("line")
        if e.attrib["class"] == "whisker"
    ]
    assert whiskers[0][1] - whiskers[0][0] == pytest.approx(accent / 10, abs=0.11)
    assert root.attrib["aria-label"].startswith("Accuracy: a 25.0 %, b 50.0 %, c 100.0 %")
