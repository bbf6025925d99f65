"""Untrusted text made fit for a page: what model and passages wrote, minus what could act.

Escape sequences and control characters would drive a terminal or break XML, direction overrides
can make a line read as something else, and lone surrogates cannot be encoded. Escaping for HTML is
not done here: the template engine does it for every value.
"""

from __future__ import annotations

import re

MAX_CHARACTERS = 20_000
"""Longer texts are cut, with a note that says by how much."""

_ESCAPE_SEQUENCE = re.compile(
    r"""
    # colours, cursor movement
      (?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]
    # window titles, links
    | (?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x80-\x9f\n]*(?:\x07|\x1b\\|\x9c)
    # two-character sequences
    | \x1b[ -/]*[0-~]
    """,
    re.VERBOSE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_UNENCODABLE = re.compile(r"[\ud800-\udfff\ufffe\uffff]")
_LINE_END = re.compile(r"\r\n?|[\u2028\u2029]")


def clean(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Strip escape sequences and control characters but tab and newline, and cut at ``limit``."""
    text = _LINE_END.sub("\n", _ESCAPE_SEQUENCE.sub("", text))
    text = _UNENCODABLE.sub("\ufffd", _CONTROL.sub("", text))
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… [{len(text) - limit:,} more characters not shown]"


def snippet(text: str, limit: int = 140) -> str:
    """The first words of a text on one line."""
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else line[:limit].rsplit(" ", 1)[0] + "…"
