"""Text metrics: does a prediction agree with any of the gold answers?

Two comparisons exist: of normalised strings (SQuAD's rule, taken over by HotpotQA, MuSiQue, 2Wiki
and Search-R1) and of DPR tokens (passages, and s3's span check). Differs from the papers: a gold
answer of which nothing is left to compare ("The", "?") agrees only with a prediction that equals
it as it stands, where the official scripts let it match nearly anything; those, quirks included,
are in ``official.py``.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Literal

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DELETE_PUNCTUATION: Mapping[int, str] = dict.fromkeys(map(ord, string.punctuation), "")


def normalise(text: str, punctuation: Mapping[int, str] = _DELETE_PUNCTUATION) -> str:
    """Reduce a text to what SQuAD's scripts compare.

    Lower case; punctuation replaced; whole words a/an/the dropped; white space collapsed.

    Args:
        text: any text.
        punctuation: replacement of each punctuation character, by code point. The default deletes
            the 32 ASCII ones.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(punctuation)).split())


def token_f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall, as bags; 0 where no token is shared."""
    common = sum((Counter(prediction) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(gold)
    return 2 * precision * recall / (precision + recall)


class _Kinds(dict[str, Literal["word", "symbol", "space"]]):
    """What part a character plays in a DPR token, looked up once a character."""

    def __missing__(self, character: str) -> Literal["word", "symbol", "space"]:
        category = unicodedata.category(character)[0]
        self[character] = "word" if category in "LNM" else "space" if category in "ZC" else "symbol"
        return self[character]


_KINDS = _Kinds()


def dpr_tokens(text: str) -> list[str]:
    """Split a text as DPR's answer matcher does.

    Canonically decomposed, then runs of letters, numbers and marks, and every other visible
    character alone; each lower-cased. Separators and control characters only divide.
    """
    tokens: list[str] = []
    for kind, run in groupby(unicodedata.normalize("NFD", text), _KINDS.__getitem__):
        if kind == "word":
            tokens.append("".join(run).lower())
        elif kind == "symbol":
            tokens.extend(character.lower() for character in run)
    return tokens


def contains_run(tokens: list[str], run: list[str]) -> bool:
    """Whether ``run`` is a contiguous sub-list of ``tokens``; the empty run is in every list."""
    width = len(run)
    return any(tokens[at : at + width] == run for at in range(len(tokens) - width + 1))


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals a gold answer once both are normalised."""
    return prediction in answers or normalise(prediction) in _comparable(answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Token F1 against the closest gold answer, in [0, 1], over normalised words (SQuAD)."""
    if prediction in answers:
        return 1.0
    words = normalise(prediction).split()
    return max((token_f1(words, gold.split()) for gold in _comparable(answers)), default=0.0)


def substring_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a normalised gold answer occurs inside the normalised prediction, as characters."""
    normalised = normalise(prediction)
    return prediction in answers or any(gold in normalised for gold in _comparable(answers))


def answer_span(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a gold answer occurs inside the prediction as whole tokens (s3's span check).

    Both sides are normalised first, then compared as DPR tokens.
    """
    return prediction in answers or has_answer(normalise(prediction), _comparable(answers))


def has_answer(passage: str, answers: Sequence[str]) -> bool:
    """Whether a passage's text holds a gold answer as whole tokens (DPR), without normalising."""
    tokens = dpr_tokens(passage)
    runs = (dpr_tokens(answer) for answer in answers)
    return any(run and contains_run(tokens, run) for run in runs)


def _comparable(answers: Sequence[str]) -> list[str]:
    return [gold for gold in map(normalise, answers) if gold]
