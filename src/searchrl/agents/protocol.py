"""The tag protocol: what a model writes, and how it is read, once.

Only a model's own text is parsed. Text from outside (passages, questions) goes through
``neutralise`` first, which breaks anything that looks like a protocol tag and leaves every other
text byte-identical. Parsing is linear in the length of the text and never raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from searchrl.agents.episode import Action, ActionKind
from searchrl.retrieval.protocol import Hit

RESERVED = (
    "question",
    "information",
    "query",
    "important_info",
    "search_complete",
    "think",
    "search",
    "answer",
)
STOP_S3 = (
    "</query>",
    "<search_complete>True</search_complete>",
    "<search_complete>true</search_complete>",
)
# Possessive: a long run of spaces after a "<" is walked once, not once for every way to split it.
_TAG = re.compile(r"<(?=\s*+(?:/\s*+)?(?:" + "|".join(RESERVED) + r")\b)", re.IGNORECASE)
_AFFIRMATIVE = frozenset({"true", "yes", "1", "y"})


def neutralise(text: str) -> str:
    """Replace the ``<`` of every look-alike of a protocol tag by ``‹``.

    Idempotent, and the identity on text without such a look-alike.
    """
    return _TAG.sub("‹", text) if "<" in text else text


def render_hits(hits: Sequence[Hit]) -> str:
    """One line a hit, numbered from 1, as a searcher reads them (s3, section 3.1)."""
    return "\n".join(
        f'Doc {rank} (Title: "{neutralise(hit.passage.title)}") {neutralise(hit.passage.text)}'
        for rank, hit in enumerate(hits, start=1)
    )


def render_observation(rendered_hits: str) -> str:
    """What the environment appends after a search."""
    return f"\n\n<information>{rendered_hits}</information>\n\n"


def body(text: str, tag: str) -> str | None:
    """What stands in the first ``<tag>...</tag>`` of a text, stripped, or ``None``."""
    start = text.find(f"<{tag}>")
    if start < 0:
        return None
    start += len(tag) + 2
    end = text.find(f"</{tag}>", start)
    return None if end < 0 else text[start:end].strip()


@dataclass(frozen=True, slots=True)
class S3Output:
    """One parsed output of an s3 searcher.

    Attributes:
        action: search, finish or invalid.
        selection: the numbers in its ``important_info``, in order and each once; ``None`` when
            the tag is not there.
    """

    action: Action
    selection: tuple[int, ...] | None


def parse_s3(text: str) -> S3Output:
    """Read one output of an s3 searcher.

    An affirmative ``search_complete`` wins over a query. A query is JSON with the key ``query``,
    whose list value stands for its first element; any other body is itself the query. An output
    ends with its first closing query tag: what follows that is not read.

    Differs from the original: an empty query is invalid instead of being sent, and a number is
    sent as text instead of breaking the request.
    """
    before, closing, _ = text.partition("</query>")
    said = before + closing
    return S3Output(_s3_action(said), _numbers(body(said, "important_info")))


def _s3_action(text: str) -> Action:
    complete = body(text, "search_complete")
    if complete is not None and complete.lower() in _AFFIRMATIVE:
        return Action(ActionKind.FINISH)
    raw = body(text, "query")
    # JSON can escape half a surrogate pair, which cannot be sent or stored as UTF-8.
    query = "" if raw is None else _query(raw).encode("utf-8", "replace").decode()
    return Action(ActionKind.SEARCH, query=query) if query else Action(ActionKind.INVALID)


def _query(raw: str) -> str:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    value = value.get("query") if isinstance(value, dict) else None
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return raw


def _numbers(selection: str | None) -> tuple[int, ...] | None:
    if selection is None:
        return None
    # Longer digit runs are no passage numbers, and int() refuses very long ones.
    runs = (int(run) for run in re.findall(r"\d+", selection) if len(run) <= 6)
    return tuple(dict.fromkeys(runs))
