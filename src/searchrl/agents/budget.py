"""Token budgets: passages are cut so that a rendered block fits, and nothing else is.

Instructions and the question are never cut. Every passage keeps its place and its title; the
longest texts give way first, at word boundaries, so tags around the block always stay closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from searchrl.retrieval.protocol import Hit

Render = Callable[[Sequence[Hit]], str]
CountTokens = Callable[[str], int]


def fit_hits(
    hits: Sequence[Hit], budget: int, render: Render, count_tokens: CountTokens
) -> tuple[Hit, ...]:
    """Cut passage texts to the longest common length whose rendering fits the budget.

    Args:
        hits: in rank order.
        budget: tokens the rendered block may take.
        render: how hits become one text.
        count_tokens: length of a text in tokens.

    Returns:
        The hits, texts possibly shortened. When even empty texts do not fit, hits are dropped from
        the end.
    """
    kept = tuple(hits)
    if count_tokens(render(kept)) <= budget:
        return kept
    while kept and count_tokens(render([_cut(hit, 0) for hit in kept])) > budget:
        kept = kept[:-1]
    low, high = 0, max((len(hit.passage.text) for hit in kept), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(render([_cut(hit, middle) for hit in kept])) <= budget:
            low = middle
        else:
            high = middle - 1
    return tuple(_cut(hit, low) for hit in kept)


def _cut(hit: Hit, length: int) -> Hit:
    text = hit.passage.text
    if len(text) <= length:
        return hit
    shortened = text[:length]
    if " " in shortened and not text[length].isspace():
        shortened = shortened[: shortened.rindex(" ")]
    return replace(hit, passage=replace(hit.passage, text=shortened))
