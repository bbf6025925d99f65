"""Charts as SVG files of their own, for the README and the documentation.

They are the drawings of the report, with their styles and a background inside, so they read well
on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from searchrl.data.storage import write_text
from searchrl.reporting.methods import AXIS_LABEL, read_methods, to_bars
from searchrl.reporting.svg import bar_chart, line_chart

_WIDTH = 720


def write_bar_svg(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the methods of a summary as bars with their 95 % intervals.

    Raises:
        InputError: the summary is not in the form of ``summary.json``.
    """
    bars = to_bars(read_methods(summary))
    drawing = bar_chart(bars, width=_WIDTH, axis_label=AXIS_LABEL)
    write_text(path, drawing.standalone() + "\n")


def write_curves_svg(
    path: Path, series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str
) -> None:
    """Write named lines of ``(x, y)`` points over one pair of axes."""
    drawing = line_chart(series, width=_WIDTH, height=340, x_label=x_label, y_label=y_label)
    write_text(path, drawing.standalone() + "\n")
