"""From text to index terms exactly as Lucene's EnglishAnalyzer does it, which is Anserini's.

Words are cut at the boundaries of Unicode's UAX #29 as Lucene's StandardTokenizer does, lose a
possessive s, are lower-cased, filtered by Lucene's 33 stop words, and stemmed with Porter's
algorithm in the form its author published as code. One analyzer object serves passages and
queries, so the two can never be cut differently.

Differs from Lucene: characters whose properties changed with newer versions of Unicode may be cut
differently. On three corpora of 27,000 passages in all, the top ten of every query are Anserini's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import regex
import Stemmer

_LUCENE_STOP_WORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there
these they this to was will with
"""
STOP_WORDS = frozenset(_LUCENE_STOP_WORDS.split())
MAX_WORD = 255
"""Longest word in characters; StandardTokenizer cuts a longer one into pieces of this length."""

_TAIL = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*+"
"""What UAX #29's rule WB4 attaches to the character before it."""


def _class(*names: str) -> str:
    return "[" + "".join(rf"\p{{WB={name}}}" for name in names) + "]" + _TAIL


_LETTER = _class("ALetter", "HebrewLetter")
_DIGIT = _class("Numeric")
_KATAKANA = _class("Katakana")
_JOINER = _class("ExtendNumLet")
_MID_LETTER = _class("MidLetter", "MidNumLet", "SingleQuote")
_MID_DIGIT = _class("MidNum", "MidNumLet", "SingleQuote")
_LETTERS = rf"{_LETTER}(?:(?:{_MID_LETTER})?{_LETTER})*+"
_DIGITS = rf"{_DIGIT}(?:(?:{_MID_DIGIT})?{_DIGIT})*+"
_PART = rf"(?:{_LETTERS}|{_DIGITS}|{_KATAKANA})"
_PICTURE = rf"\p{{Extended_Pictographic}}{_TAIL}"
# An underscore joins what stands on its sides (WB13a, WB13b). Ideographs and Hiragana are words by
# themselves; pictures too, unless a zero-width joiner makes one of several (WB3c).
_WORD = regex.compile(
    rf"(?:{_JOINER})*+{_PART}(?:(?:{_JOINER})*+{_PART})*+(?:{_JOINER})*+"
    rf"|[\p{{Script=Thai}}\p{{Script=Lao}}\p{{Script=Khmer}}\p{{Script=Myanmar}}]++"
    rf"|[\p{{Han}}\p{{Hiragana}}]{_TAIL}"
    rf"|{_PICTURE}(?:(?<=\u200D){_PICTURE})*+|\p{{Regional_Indicator}}{{2}}"
)
_POSSESSIVE = ("'s", "’s", "＇s", "'S", "’S", "＇S")  # noqa: RUF001 - the signs Lucene knows
_DEPARTS = re.compile(r"(?:bl|log)[iy](?:e?s|ed|ing)?$")
_HAS_MEASURE = re.compile(r"(?:[aeiou]|(?<=[^aeiou])y)[^aeiou]")
"""Porter's ``m > 0``: a vowel, then a consonant; y is a vowel after a consonant."""


class EnglishAnalyzer:
    """Turns text into index terms.

    Attributes:
        name: changes whenever the terms that come out may change; an index remembers it.
    """

    name = "lucene-english-1"

    def __init__(self) -> None:
        self._stemmer: Any = Stemmer.Stemmer("porter")

    def words(self, text: str) -> list[str]:
        """The index terms of a text, in order, repeats kept."""
        lowered = [_lower(word) for word in tokens(text)]
        kept = [word for word in lowered if word not in STOP_WORDS]
        stems: list[str] = self._stemmer.stemWords(kept)
        return [self._settle(word, stem) for word, stem in zip(kept, stems, strict=True)]

    def _settle(self, word: str, stem: str) -> str:
        """The stem of Porter's own code, given the one of his paper, which is Snowball's.

        The code leaves words of one or two letters whole, and departs from the paper in two rules
        of the second step: ``bli`` becomes ``ble``, where the paper has ``abli``, and ``logi``
        becomes ``log``. The rules bear on words that the first step leaves with these endings.
        """
        if len(word) < 3:
            return word
        if not stem.endswith(("bli", "logi")) or not _DEPARTS.search(word):
            return stem
        if stem.endswith("bli") and _HAS_MEASURE.search(stem[:-3]):
            return str(self._stemmer.stemWord(stem[:-1] + "e"))
        if stem.endswith("logi") and _HAS_MEASURE.search(stem[:-4]):
            return stem[:-1]
        return stem


def tokens(text: str) -> Iterator[str]:
    """The words of a text as StandardTokenizer cuts them, without a possessive s."""
    for match in _WORD.finditer(text):
        word = match.group()
        for start in range(0, len(word), MAX_WORD):
            piece = word[start : start + MAX_WORD]
            yield piece[:-2] if piece.endswith(_POSSESSIVE) else piece


def _lower(word: str) -> str:
    """Lower case one character at a time, as Java does; Python looks at the neighbours of some."""
    if word.isascii():
        return word.lower()
    return "".join(character.lower()[0] for character in word)
