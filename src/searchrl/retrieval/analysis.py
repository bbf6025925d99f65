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
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
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
_REMEMBERED = 1 << 17
"""Words whose terms are remembered, 300 bytes or so each."""

_TAIL = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*+"
"""What UAX #29's rule WB4 attaches to the character before it."""


def _word(one: Callable[..., str]) -> str:
    """The pattern of a word, given the one of a character with any of some values of WB."""
    letter, digit = one("ALetter", "HebrewLetter"), one("Numeric")
    joiners = rf"(?:{one('ExtendNumLet')})*+"
    letters = rf"{letter}(?:(?:{one('MidLetter', 'MidNumLet', 'SingleQuote')})?{letter})*+"
    digits = rf"{digit}(?:(?:{one('MidNum', 'MidNumLet', 'SingleQuote')})?{digit})*+"
    part = rf"(?:{letters}|{digits}|{one('Katakana')})"
    # An underscore joins what stands on its sides (WB13a, WB13b).
    return rf"{joiners}{part}(?:{joiners}{part})*+{joiners}"


def _one(*names: str) -> str:
    return "[" + "".join(rf"\p{{WB={name}}}" for name in names) + "]" + _TAIL


def _one_of_ascii(*names: str) -> str:
    """The same among the characters of ASCII, spelled out; nothing where there is none."""
    members = regex.findall("[" + "".join(rf"\p{{WB={name}}}" for name in names) + "]", _ASCII)
    return "[" + "".join(map(re.escape, members)) + "]" if members else "(?!)"


_ASCII = "".join(map(chr, range(128)))
_PICTURE = rf"\p{{Extended_Pictographic}}{_TAIL}"
# Ideographs and Hiragana are words by themselves; pictures too, unless a zero-width joiner makes
# one of several (WB3c).
_WORD = regex.compile(
    _word(_one) + rf"|[\p{{Script=Thai}}\p{{Script=Lao}}\p{{Script=Khmer}}\p{{Script=Myanmar}}]++"
    rf"|[\p{{Han}}\p{{Hiragana}}]{_TAIL}"
    rf"|{_PICTURE}(?:(?<=\u200D){_PICTURE})*+|\p{{Regional_Indicator}}{{2}}"
)
_ASCII_WORD = re.compile(_word(_one_of_ascii))
"""The same words in a text of ASCII alone, found several times as fast."""
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
        # Terms are remembered here, so its own cache would only be looked up in vain.
        self._stemmer: Any = Stemmer.Stemmer("porter", 0)
        self._terms = _Remembered(self._terms_of)

    def words(self, text: str) -> list[str]:
        """The index terms of a text, in order, repeats kept."""
        return list(chain.from_iterable(map(self._terms.__getitem__, _matches(text))))

    def _terms_of(self, match: str) -> tuple[str, ...]:
        """The index terms of what was cut from a text: none of a stop word, most often one."""
        kept = [word for word in map(_lower, _pieces(match)) if word not in STOP_WORDS]
        return tuple(self._settle(word, self._stemmer.stemWord(word)) for word in kept)

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


class _Remembered(dict[str, tuple[str, ...]]):
    """The terms of words met before: texts repeat their words far more often than not."""

    def __init__(self, terms: Callable[[str], tuple[str, ...]]) -> None:
        super().__init__()
        self._of = terms

    def __missing__(self, match: str) -> tuple[str, ...]:
        if len(self) >= _REMEMBERED:
            self.clear()
        terms = self[match] = self._of(match)
        return terms


def tokens(text: str) -> Iterator[str]:
    """The words of a text as StandardTokenizer cuts them, without a possessive s."""
    return chain.from_iterable(map(_pieces, _matches(text)))


def _matches(text: str) -> list[str]:
    found: list[str] = (_ASCII_WORD if text.isascii() else _WORD).findall(text)
    return found


def _pieces(word: str) -> Iterable[str]:
    for start in range(0, len(word), MAX_WORD):
        piece = word[start : start + MAX_WORD]
        yield piece[:-2] if piece.endswith(_POSSESSIVE) else piece


def _lower(word: str) -> str:
    """Lower case one character at a time, as Java does; Python looks at the neighbours of some."""
    if word.isascii():
        return word.lower()
    return "".join(character.lower()[0] for character in word)
