"""Charts drawn by hand as SVG: bars with whiskers, and lines over steps.

Every element is built by ``element``, which escapes its text and attributes, so a method's name or
a metric's key cannot leave its place. Colours come from one palette whose light and dark values
keep a contrast of 4.5:1 for text and 3:1 for marks, and stay apart for colour-blind readers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from searchrl.reporting.numbers import number, percent, tick_labels
from searchrl.reporting.text import clean, snippet

Point = tuple[float, float]

MAX_POINTS = 120
"""A longer series is drawn as means of neighbouring points, this many in all."""

LIGHT = {
    "page": "#ffffff",
    "ink": "#1b1d21",
    "muted": "#5b616b",
    "grid": "#e3e6ea",
    "bar": "#8b93a0",
    "accent": "#0b63ad",
}
DARK = {
    "page": "#15171b",
    "ink": "#e9ebee",
    "muted": "#a3aab4",
    "grid": "#2d3138",
    "bar": "#737c89",
    "accent": "#6cb6f5",
}
_SERIES_LIGHT = ("#0b63ad", "#b35900", "#00735a", "#a1368a", "#5b616b", "#756000")
_SERIES_DARK = ("#6cb6f5", "#f0a35e", "#4fc9a0", "#e08fd0", "#a3aab4", "#d9c157")
_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
_MARGIN = 16
_HUGE = 1e300
"""Values this large would overflow the arithmetic of the axes."""
_CHARACTER = 7.5
"""Width of a wide digit of 12 px text, in px, so that labels fit in any font."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A fraction with its interval; ``emphasised`` draws it in the accent colour."""

    label: str
    value: float
    low: float
    high: float
    emphasised: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished chart: its size in px, what it shows in words, and its elements."""

    width: float
    height: float
    description: str
    body: Markup

    def inline(self) -> Markup:
        """The chart as part of a page that has ``stylesheet``."""
        return element("svg", self.body, attributes=self._attributes(0))

    def standalone(self) -> Markup:
        """The chart as a file of its own, with its styles, a margin and a background."""
        corner = {"x": -_MARGIN, "y": -_MARGIN, "rx": 6}
        size = {"width": self.width + 2 * _MARGIN, "height": self.height + 2 * _MARGIN}
        ground = element("rect", attributes={"class": "page", **corner, **size})
        namespace = {"xmlns": "http://www.w3.org/2000/svg"}
        attributes = {**namespace, **self._attributes(_MARGIN), **size}
        style = element("style", stylesheet())
        return element("svg", style, ground, self.body, attributes=attributes)

    def _attributes(self, margin: float) -> dict[str, str | float]:
        box = (-margin, -margin, self.width + 2 * margin, self.height + 2 * margin)
        return {
            "class": "chart",
            "viewBox": " ".join(_attribute(edge) for edge in box),
            "role": "img",
            "aria-label": snippet(self.description, 600),
        }


def element(
    tag: str, *children: str, attributes: Mapping[str, str | float] | None = None
) -> Markup:
    """One SVG element; children and attribute values that are not ``Markup`` are escaped."""
    written = Markup("").join(
        Markup(' {}="{}"').format(name, _attribute(value))
        for name, value in (attributes or {}).items()
    )
    inner = Markup("").join(
        child if isinstance(child, Markup) else clean(child) for child in children
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, inner)


def stylesheet() -> Markup:
    """Rules for every chart, in literal colours, so that a standalone file needs nothing else."""
    rules = [
        f"svg.chart{{font:12px {_FONT};font-variant-numeric:tabular-nums}}",
        "svg.chart .strong{font-weight:600}svg.chart .band{fill-opacity:0}",
        "svg.chart .band:hover{fill-opacity:.14}",
        "svg.chart .line{fill:none;stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round}",
        _colour_rules(LIGHT, _SERIES_LIGHT),
        "@media (prefers-color-scheme:dark){" + _colour_rules(DARK, _SERIES_DARK) + "}",
    ]
    return Markup("".join(rules))


def bar_chart(bars: Sequence[Bar], *, width: int, axis_label: str) -> Drawing:
    """Horizontal bars with whiskers; below 480 px the labels stand above their bars."""
    stacked = width < 480
    left, right, top = (0 if stacked else 168), width - 64, 4
    row_height = 46 if stacked else 34
    highest = max((bar.high for bar in bars), default=1.0)
    limit = next((end for end in (0.2, 0.4) if highest <= end), 1.0)
    scale = (right - left) / limit
    bottom = top + row_height * len(bars) + 4
    parts = list(_fraction_axis(left, scale, limit, top, bottom, axis_label))
    for row, bar in enumerate(bars):
        centre = top + row * row_height + (30 if stacked else row_height / 2)
        parts.append(_bar_row(bar, centre, left, scale, width, stacked))
    described = ", ".join(f"{clean(bar.label)} {percent(bar.value)}" for bar in bars)
    return Drawing(width, bottom + 40, f"{axis_label}: {described}", Markup("").join(parts))


def line_chart(
    series: Mapping[str, Sequence[Point]], *, width: int, height: int, x_label: str, y_label: str
) -> Drawing:
    """Lines over a common x axis; one series gets hover titles, several get a legend."""
    finite = {name: [p for p in points if _is_drawable(p)] for name, points in series.items()}
    drawn = {name: thin(points) for name, points in finite.items() if points}
    everything = [point for points in drawn.values() for point in points]
    legend, legend_height = _legend(list(drawn), width) if len(drawn) > 1 else (Markup(""), 0)
    end = number(everything[-1][1]) if len(drawn) == 1 else ""
    frame = _Frame.around(everything, width, height, top=32 + legend_height, end=end)
    parts = [
        element("text", y_label, attributes={"class": "ink strong", "x": 0, "y": 12}),
        legend,
        *frame.grid(x_label),
    ]
    for position, points in enumerate(drawn.values()):
        parts.append(_line(frame, points, position))
    if len(drawn) == 1:
        parts += _last_value(frame, everything)
        parts += _hover_bands(frame, everything, x_label)
    described = _line_description(drawn, x_label, y_label)
    return Drawing(width, height, described, Markup("").join(parts))


def thin(points: Sequence[Point]) -> list[Point]:
    """At most ``MAX_POINTS`` points: the first, then the mean of each run of neighbours."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil((len(points) - 1) / (MAX_POINTS - 1))
    runs = [points[start : start + size] for start in range(1, len(points), size)]
    means = [(run[-1][0], math.fsum(y for _, y in run) / len(run)) for run in runs]
    return [points[0], *means]


def padded_range(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a little room on both sides; never empty."""
    low, high = min(values), max(values)
    is_flat = high - low <= 1e-9 * max(abs(low), abs(high))
    room = (abs(low) / 2 or 0.5) if is_flat else 0.04 * (high - low)
    return low - room, high + room


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten) inside a range."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.7 * raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plotting area of a line chart in px, and the values at its edges."""

    left: float
    right: float
    top: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def around(
        cls, points: Sequence[Point], width: int, height: int, top: float, end: str
    ) -> _Frame:
        """Fit the points into a chart, with room for tick labels and for ``end`` at the right."""
        xs, ys = [p[0] for p in points] or [0.0], [p[1] for p in points] or [0.0, 1.0]
        low, high = padded_range(ys)
        left = 8 + _CHARACTER * max(map(len, tick_labels(nice_ticks(low, high))), default=0)
        right = width - 10 - 1.15 * _CHARACTER * len(end)
        return cls(left, right, top, height - 24, min(xs), max(xs), low, high)

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.bottom - share * (self.bottom - self.top)

    def grid(self, x_label: str) -> Iterable[Markup]:
        """Grid lines with their numbers, and the x axis with its first and last value."""
        yield _rule(self.left, self.bottom, self.right, self.bottom, "grid")
        ticks = nice_ticks(self.y_low, self.y_high)
        for tick, label in zip(ticks, tick_labels(ticks), strict=True):
            yield _rule(self.left, self.y(tick), self.right, self.y(tick), "grid")
            yield _text(label, self.left - 8, self.y(tick) + 4, "muted", "end")
        foot = self.bottom + 18
        yield _text(number(self.x_low), self.left, foot, "muted")
        if self.x_high > self.x_low:
            yield _text(number(self.x_high), self.right, foot, "muted", "end")
        yield _text(x_label, (self.left + self.right) / 2, foot, "muted", "middle")


def _fraction_axis(
    left: float, scale: float, limit: float, top: float, bottom: float, label: str
) -> Iterable[Markup]:
    for quarter in range(5):
        value = limit * quarter / 4
        x = left + value * scale
        yield _rule(x, top, x, bottom, "grid")
        yield _text(percent(value, 0), x, bottom + 16, "muted", "middle" if quarter else "start")
    yield _text(label, left, bottom + 34, "muted")


def _bar_row(
    bar: Bar, centre: float, left: float, scale: float, width: int, stacked: bool
) -> Markup:
    colour = "accent" if bar.emphasised else "bar"
    label = snippet(bar.label, 44 if stacked else 26)
    weight = "ink strong" if bar.emphasised else "ink"
    label_y = centre - 13 if stacked else centre + 4
    low, high = left + bar.low * scale, left + bar.high * scale
    length = max(bar.value * scale, 1)
    body: dict[str, str | float] = {"x": left, "y": centre - 8, "width": length}
    hover = f"{bar.label}: {percent(bar.value)}, 95 % interval {percent(bar.low)}"
    return element(
        "g",
        element("title", f"{hover} to {percent(bar.high)}"),
        _text(label, 0, label_y, weight),
        element("rect", attributes={"class": colour, **body, "height": 16, "rx": 2}),
        _rule(low, centre, high, centre, "whisker"),
        _rule(low, centre - 5, low, centre + 5, "whisker"),
        _rule(high, centre - 5, high, centre + 5, "whisker"),
        _text(percent(bar.value), width, centre + 4, weight, "end"),
    )


def _line(frame: _Frame, points: Sequence[Point], position: int) -> Markup:
    colour = position % len(_SERIES_LIGHT)
    if len(points) == 1:
        place = {"cx": frame.x(points[0][0]), "cy": frame.y(points[0][1]), "r": 3}
        return element("circle", attributes={"class": f"fill-{colour}", **place})
    path = " ".join(f"{_attribute(frame.x(x))},{_attribute(frame.y(y))}" for x, y in points)
    attributes = {"class": f"line stroke-{colour}", "points": path}
    if position >= len(_SERIES_LIGHT):
        attributes["stroke-dasharray"] = "5 4"
    return element("polyline", attributes=attributes)


def _last_value(frame: _Frame, points: Sequence[Point]) -> list[Markup]:
    """A dot and the number at the end of a single line."""
    x, y = frame.x(points[-1][0]), frame.y(points[-1][1])
    dot = element("circle", attributes={"class": "fill-0", "cx": x, "cy": y, "r": 2.5})
    return [dot, _text(number(points[-1][1]), x + 6, y + 4, "accent strong")]


def _hover_bands(frame: _Frame, points: Sequence[Point], x_label: str) -> Iterable[Markup]:
    """Full-height bands, one a point, so that hovering anywhere names the nearest value."""
    centres = [frame.x(x) for x, _ in points]
    middles = [(a + b) / 2 for a, b in pairwise(centres)]
    edges = [frame.left, *middles, frame.right]
    for (start, end), (x, y) in zip(pairwise(edges), points, strict=True):
        place = {"x": start, "y": frame.top, "width": max(end - start, 0.1)}
        yield element(
            "rect",
            element("title", f"{x_label} {number(x)}: {number(y)}"),
            attributes={"class": "band accent", **place, "height": frame.bottom - frame.top},
        )


def _legend(names: Sequence[str], width: int) -> tuple[Markup, float]:
    """Swatches with names, wrapped to the width; returns the drawing and its height."""
    x, y = 0.0, 36.0
    parts = []
    for position, name in enumerate(names):
        label = snippet(name, 40)
        needed = 26 + _CHARACTER * len(label) + 14
        if x > 0 and x + needed > width:
            x, y = 0.0, y + 20
        swatch = _rule(x, y - 4, x + 18, y - 4, f"line stroke-{position % len(_SERIES_LIGHT)}")
        parts += [swatch, _text(label, x + 24, y, "ink")]
        x += needed
    return Markup("").join(parts), y - 12


def _line_description(drawn: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    lines = [
        f"{name}: {number(points[0][1])} at {x_label} {number(points[0][0])}, "
        f"{number(points[-1][1])} at {x_label} {number(points[-1][0])}, "
        f"lowest {number(min(y for _, y in points))}, highest {number(max(y for _, y in points))}"
        for name, points in drawn.items()
    ]
    if len(lines) == 1:
        return lines[0]
    return f"{y_label} by {x_label}. " + "; ".join(lines)


def _text(text: str, x: float, y: float, colour: str, anchor: str = "start") -> Markup:
    attributes: dict[str, str | float] = {"class": colour, "x": x, "y": y}
    if anchor != "start":
        attributes["text-anchor"] = anchor
    return element("text", text, attributes=attributes)


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str) -> Markup:
    return element("line", attributes={"class": colour, "x1": x1, "y1": y1, "x2": x2, "y2": y2})


def _is_drawable(point: Point) -> bool:
    return math.isfinite(point[0]) and abs(point[1]) < _HUGE


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return clean(value)
    return f"{value:z.1f}".removesuffix(".0")


def _colour_rules(palette: Mapping[str, str], series: Sequence[str]) -> str:
    fills = [f"svg.chart .{name}{{fill:{palette[name]}}}" for name in palette if name != "grid"]
    strokes = [
        f"svg.chart .grid{{stroke:{palette['grid']}}}",
        f"svg.chart .whisker{{stroke:{palette['ink']};stroke-width:1.5}}",
    ]
    lines = [
        f"svg.chart .stroke-{index}{{stroke:{colour}}}svg.chart .fill-{index}{{fill:{colour}}}"
        for index, colour in enumerate(series)
    ]
    return "".join(fills + strokes + lines)
