"""Which option of a multiple-choice question a reply chose, by MIRAGE's rule.

MIRAGE looks for the letters A to D in a reply in a fixed order of patterns: at the start and alone,
then before "or", "and", a slash or a comma, after "option", after a colon, and at last before a
full stop, a quotation mark or a colon. What follows the last ``"answer_choice": "`` is the reply,
where that is written. A reply in which nothing is found counts as A there; ``chosen_option``
returns ``None`` for it, and only ``mirage_accuracy``, the official number, takes it for A.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_FIELD = '"answer_choice": "'
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"^\s*([A-D])$",
        r"^\s*([A-D]) or",
        r"^\s*([A-D]) and",
        r"^\s*([A-D])/",
        r"^\s*([A-D]),",
        r"[Oo]ption ([A-D])",
        r":\s*([A-D])",
        r"^\s*([A-D])\.",
        r'^\s*([A-D])"',
        r"^\s*([A-D]):",
    )
)
_OFFICIAL_DEFAULT = "A"


def chosen_option(reply: str) -> str | None:
    """The letter of the option that a reply chose, or ``None``."""
    text = reply.rpartition(_FIELD)[2].strip()
    found = (pattern.search(text) for pattern in _PATTERNS)
    return next((match[1] for match in found if match), None)


def mirage_accuracy(prediction: str, golds: Sequence[str]) -> float:
    """MIRAGE's accuracy: whether the option chosen is that of a gold answer ``letter: text``."""
    letter = chosen_option(prediction) or _OFFICIAL_DEFAULT
    return float(any(gold.partition(":")[0].strip() == letter for gold in golds))
