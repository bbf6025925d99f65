"""Numbers as people read them: few digits, a real minus sign, a unit that does not wrap."""

from __future__ import annotations

import math
from collections.abc import Sequence

NO_VALUE = "\N{EN DASH}"
"""Stands where there is no number."""

_MINUS_SIGN = "\N{MINUS SIGN}"
_UNIT_SPACE = "\N{NO-BREAK SPACE}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.8432 as ``84.3 %``; an en dash when there is no value."""
    if fraction is None or not math.isfinite(fraction):
        return NO_VALUE
    return f"{_minus(f'{100 * fraction:z.{digits}f}')}{_UNIT_SPACE}%"


def headline_percent(fraction: float) -> str:
    """Whole percent, with one digit where rounding would claim all or nothing."""
    rounded = round(100 * fraction)
    digits = 1 if rounded in (0, 100) and fraction not in (0.0, 1.0) else 0
    return percent(fraction, digits)


def number(value: float | None) -> str:
    """Three significant digits: ``0.0123``, ``4.5``, ``1,235``, ``2.1e-07``."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e9:
        return _minus(f"{value:.1e}")
    if size >= 100 or value == int(value):
        return _minus(f"{value:,.0f}")
    digits = 2 - math.floor(math.log10(size))
    return _minus(f"{value:.{digits}f}".rstrip("0").rstrip("."))


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels for evenly spaced ticks, with just the digits that tell neighbours apart."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.0
    if step < 1e-4 or max(abs(tick) for tick in ticks) >= 1e6:
        return [number(tick) for tick in ticks]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [_minus(f"{tick:z,.{digits}f}") for tick in ticks]


def points(fraction: float, digits: int = 1) -> str:
    """A difference of fractions in percentage points, with its sign: ``+6.7``."""
    return _minus(f"{100 * fraction:+z.{digits}f}")


def p_value(value: float) -> str:
    """``p = 0.032``, or ``p < 0.001``."""
    written = "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
    return written.replace(" ", _UNIT_SPACE)


def _minus(text: str) -> str:
    """A leading hyphen becomes a minus sign; an exponent's stays."""
    return _MINUS_SIGN + text[1:] if text.startswith("-") else text
