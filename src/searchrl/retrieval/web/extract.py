"""Text from a page: its paragraphs in order, without menus, scripts and forms.

A document is cut at its tags and never built as a tree: what the standard makes a parser do with
unclosed elements lets a small page take minutes and gigabytes, and a page is a stranger's. Every
expression here reads a page once, whatever is in it.
"""

from __future__ import annotations

import codecs
import html
import re
from collections import Counter

from searchrl.retrieval.web.fetch import Page

_DROPPED = re.compile(
    r"<!--.*?(?:-->|\Z)|<(head|script|style|noscript|template|svg|iframe|form|nav|header|footer|"
    r"aside|button|select|textarea)\b.*?(?:</\1\s*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_MAIN = re.compile(r"<main\b[^<>]*>(.*?)(?:</main\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(
    r"<(/?)([a-z][a-z0-9:-]*+)(?:[^<>\"']|\"[^\"]{0,2000}\"|'[^']{0,2000}')*+>|<[/!?a-z][^<>]*+>",
    re.IGNORECASE,
)
_BLOCKS = frozenset(
    {
        "address", "article", "blockquote", "body", "br", "caption", "dd", "details", "div", "dl",
        "dt", "fieldset", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li",
        "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "td", "th", "thead", "tr",
        "ul",
    }
)  # fmt: skip
_EDGE, _LINK, _LINK_END = "\x1e", "\x02", "\x03"
"""Marks in the place of tags at the edges of blocks and links."""
_LINKED = re.compile(f"{_LINK}([^{_LINK}{_LINK_END}]*){_LINK_END}")
_MARKS = str.maketrans("", "", _EDGE + _LINK + _LINK_END)
_MENU = 0.6
"""A block with a larger share of its text in links is a menu."""
_LEAST = 2
"""Words of a block."""
_WORD = re.compile(r"\w+")
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)
_HEAD = 4_096


def paragraphs(page: Page) -> list[str]:
    """The paragraphs of a page, each on one line."""
    text = page.body.decode(_encoding(page), "replace").translate(_MARKS)
    if page.kind in ("text/html", "application/xhtml+xml"):
        blocks = _marked(text).split(_EDGE)
        found = [_line(html.unescape(block)) for block in blocks if not _is_menu(block)]
    else:
        found = [_line(block) for block in re.split(r"\n\s*\n", text)]
    return [line for line in found if len(_words(line)) >= _LEAST]


def best_part(found: list[str], wanted: str, size: int) -> str:
    """The neighbouring paragraphs that say most of what is wanted, ``size`` characters at most.

    A part is worth the number of different words of ``wanted`` it holds; the first best counts. A
    paragraph longer than that is cut.
    """
    words = set(_words(wanted))
    shown = [paragraph[:size] for paragraph in found]
    holds = [words.intersection(_words(paragraph)) for paragraph in shown]
    held: Counter[str] = Counter()
    best, most, end, length = (0, 0), -1, 0, 0
    for start, paragraph in enumerate(shown):
        while end < len(shown) and (end == start or length + 1 + len(shown[end]) <= size):
            held.update(holds[end])
            length += len(shown[end]) + (end > start)
            end += 1
        if len(held) > most:
            best, most = (start, end), len(held)
        held -= Counter(holds[start])
        length -= len(paragraph) + (end > start + 1)
    return "\n".join(shown[slice(*best)])


def _marked(document: str) -> str:
    """The text of a document, with marks at the edges of its blocks and links."""
    document = _DROPPED.sub(_EDGE, document)
    main = _MAIN.search(document)
    return _TAG.sub(_mark, main[1] if main else document)


def _mark(tag: re.Match[str]) -> str:
    name = (tag[2] or "").lower()
    if name in _BLOCKS:
        return _EDGE
    if name == "a":
        return _LINK_END if tag[1] else _LINK
    return ""


def _is_menu(block: str) -> bool:
    linked = sum(map(len, _LINKED.findall(block)))
    return linked > _MENU * len(block.translate(_MARKS).strip())


def _line(block: str) -> str:
    return " ".join(block.translate(_MARKS).split())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _encoding(page: Page) -> str:
    """What the answer names, else what the document names, else UTF-8."""
    named = _CHARSET.search(page.body[:_HEAD])
    for name in (page.encoding, named and named[1].decode("ascii")):
        try:
            return codecs.lookup(name or "").name
        except LookupError:
            continue
    return "utf-8"
