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
STOP_SEARCH_R1 = ("</search>", "</answer>")
STOP_SEARCH_O1 = ("<|end_search_query|>",)
# Possessive: a long run of spaces after a "<" is walked once, not once for every way to split it.
_TAG = re.compile(
    r"<(?=\s*+(?:(?:/\s*+)?(?:" + "|".join(RESERVED) + r")\b"
    r"|\|\s*+(?:begin|end)_search_(?:query|result)\b))",
    re.IGNORECASE,
)
_FORMAT_TAG = re.compile(r"</?(?:think|search|information|answer)>")
_FORMAT = {
    ("start", "<think>"): "in think",
    ("in think", "</think>"): "thought",
    ("thought", "<search>"): "in search",
    ("thought", "<answer>"): "in answer",
    ("in search", "</search>"): "end",
    ("in answer", "</answer>"): "end",
}
"""The tags that Search-R1's form allows in each state, and the state after them."""
_AFFIRMATIVE = frozenset({"true", "yes", "1", "y"})


def neutralise(text: str) -> str:
    """Replace the ``<`` of every look-alike of a protocol tag by ``‹``.

    Idempotent, and the identity on text without such a look-alike.
    """
    return _TAG.sub("‹", text) if "<" in text else text


def render_hits(hits: Sequence[Hit], gap: str = " ") -> str:
    """One line a hit, numbered from 1, as a searcher reads them (s3, section 3.1).

    Args:
        hits: in rank order.
        gap: what stands between a number and its title; nothing, for models of Search-R1.
    """
    return "\n".join(
        f'Doc {rank}{gap}(Title: "{neutralise(hit.passage.title)}") {neutralise(hit.passage.text)}'
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


@dataclass(frozen=True, slots=True)
class TaggedOutput:
    """One parsed output of a model that thinks, then acts.

    Attributes:
        action: what it asks for.
        well_formed: whether it has the form that its method asks for.
    """

    action: Action
    well_formed: bool


def parse_search_r1(text: str, search: bool = True) -> TaggedOutput:
    """Read one output of a Search-R1 model: a query, an answer, or neither.

    The first closing search or answer tag ends the output, and what stands between it and the
    nearest opening tag of its name before it is the query or the answer. It is well formed when it
    is one thinking block and one action block, with no other tag in either and nothing but white
    space around them.

    Args:
        text: the model's own text.
        search: whether it may search; without, a query is no action.

    Differs from the original: a closing search tag does not win over an answer that came before
    it, a tag that is only mentioned does not open a block, and an empty query is not sent.
    """
    ends = {
        tag: text.find(f"</{tag}>") for tag in (("search", "answer") if search else ("answer",))
    }
    closed = {tag: end for tag, end in ends.items() if end >= 0}
    if not closed:
        return TaggedOutput(Action(ActionKind.INVALID), False)
    tag = min(closed, key=closed.__getitem__)
    said = text[: closed[tag]]
    _, opening, inside = said.rpartition(f"<{tag}>")
    inside = inside.strip()
    if not opening or (tag == "search" and not inside):
        action = Action(ActionKind.INVALID)
    elif tag == "search":
        action = Action(ActionKind.SEARCH, query=inside)
    else:
        action = Action(ActionKind.ANSWER, answer=inside)
    return TaggedOutput(action, _well_formed(f"{said}</{tag}>"))


def _well_formed(text: str) -> bool:
    """Walk the tags of one output through Search-R1's format (arXiv 2505.15117, section 3)."""
    state, place = "start", 0
    for tag in _FORMAT_TAG.finditer(text):
        if not state.startswith("in ") and text[place : tag.start()].strip():
            return False
        state = _FORMAT.get((state, tag[0]), "broken")
        place = tag.end()
    return state == "end" and not text[place:].strip()


def parse_search_o1(text: str) -> Action:
    r"""Read one output of a Search-o1 model: a query between markers, a boxed answer, or neither.

    The first end marker ends the output; without one, the last ``\boxed{...}`` is the answer.
    """
    said, closing, _ = text.partition(STOP_SEARCH_O1[0])
    if closing:
        _, opening, query = said.rpartition("<|begin_search_query|>")
        query = query.strip()
        if opening and query:
            return Action(ActionKind.SEARCH, query=query)
        return Action(ActionKind.INVALID)
    answer = _boxed(said)
    if answer is None:
        return Action(ActionKind.INVALID)
    return Action(ActionKind.ANSWER, answer=answer)


def _boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}``, braces in it balanced, ``\text{...}`` undone."""
    _, opening, rest = text.rpartition("\\boxed{")
    if not opening:
        return None
    depth = 1
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", rest[:place]).strip()
    return None


def parse_deep_retrieval(text: str) -> TaggedOutput:
    """Read the one output of a DeepRetrieval model: JSON with the key ``query`` in answer tags.

    The last answer block counts. The output is well formed when it has one thinking block and then
    one answer block; text around them does not matter.
    """
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    places = [text.find(tag) for tag in tags]
    well_formed = places == sorted(places) and all(text.count(tag) == 1 for tag in tags)
    start = text.rfind("<answer>")
    inside = body(text[start:], "answer") if start >= 0 else None
    query = _json_query(inside) if inside is not None else ""
    action = Action(ActionKind.SEARCH, query=query) if query else Action(ActionKind.INVALID)
    return TaggedOutput(action, well_formed)


def _json_query(raw: str) -> str:
    """The text of ``{"query": ...}``, or nothing where the JSON has another form."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    query = value.get("query") if isinstance(value, dict) else None
    # JSON can escape half a surrogate pair, which cannot be sent or stored as UTF-8.
    return query.strip().encode("utf-8", "replace").decode() if isinstance(query, str) else ""
