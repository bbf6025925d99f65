"""A corpus of any size whose words are as unevenly spread as those of an encyclopedia.

Three words in eight are Lucene's stop words; the others follow a Zipf-Mandelbrot law over three
million types, and a passage repeats its own words, as texts do. Passages are about a hundred words
long and carry a title. They are streamed a block at a time, and the same size and seed give the
same corpus, byte for byte; a smaller corpus is the start of a larger one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from searchrl.data.passages import Passage
from searchrl.data.storage import atomic_write
from searchrl.retrieval.analysis import STOP_WORDS

BLOCK = 8_192
"""Passages that are drawn at once."""
_TYPES = 3_000_000
_SHIFT, _EXPONENT = 20.0, 1.2
"""Of the Zipf-Mandelbrot law: its first word is 1 in 100 then, as ``his`` is."""
_STOP_SHARE = 0.375
_REPEAT_SHARE = 0.15
_MEAN, _DEVIATION, _LEAST = 100, 15, 20
"""Words a passage."""
_TITLE_WORDS = 2
_QUERY_WORDS = 6
_QUERY_BLOCKS = 16
"""Blocks whose passages are asked for; drawing a block takes as long as for all its passages."""
_ONSETS = (
    *"bcdfghjklmnprstvwz",
    "br", "ch", "cl", "dr", "fl", "gr", "pl", "pr", "sh", "sl", "sp", "st", "th", "tr",
)  # fmt: skip
_RHYMES = (
    "a", "e", "i", "o", "u", "ai", "an", "ar", "el", "en", "er", "in", "is", "on", "or", "ou", "um",
)  # fmt: skip
_SUFFIXES = ("", "", "", "s", "ing", "ed", "ly", "ness")
"""What Porter's stemmer is for; one in eight each."""


@dataclass(frozen=True, slots=True)
class Question:
    """A query, and the id of the passage that it was made from."""

    text: str
    passage: str


class ZipfWords:
    """Draws words and writes them out."""

    def __init__(self) -> None:
        weights = (np.arange(_TYPES) + 1 + _SHIFT) ** -_EXPONENT
        self._cumulated = np.cumsum(weights / weights.sum())
        stops = 1 / (np.arange(len(STOP_WORDS)) + 2.0)
        self._stop_cumulated = np.cumsum(stops / stops.sum())
        self._stops = sorted(STOP_WORDS, key=lambda word: (len(word), word))
        self._spelled: dict[int, str] = {}

    def draw(self, random: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """Numbers of ``count`` words: stop words below 0, others by falling frequency."""
        numbers = np.searchsorted(self._cumulated, random.random(count))
        stops = np.searchsorted(self._stop_cumulated, random.random(count))
        drawn = np.where(random.random(count) < _STOP_SHARE, -1 - stops, numbers)
        return np.minimum(drawn, _TYPES - 1)

    def spell(self, number: int) -> str:
        """The word of a number; a rarer word is a longer one."""
        if number < 0:
            return self._stops[min(-1 - number, len(self._stops) - 1)]
        word = self._spelled.get(number)
        if word is None:
            word = self._spelled[number] = _syllables(number) + _SUFFIXES[number * 5 % 8]
        return word


def passages(count: int, seed: int = 0) -> Iterator[Passage]:
    """Stream ``count`` passages; their ids are their numbers."""
    words = ZipfWords()
    for start in range(0, count, BLOCK):
        block = _block(words, seed, start // BLOCK)
        for row, numbers in enumerate(block[: count - start], start=start):
            spelled = [words.spell(number) for number in numbers.tolist()]
            title = " ".join(word.capitalize() for word in spelled[:_TITLE_WORDS])
            yield Passage(str(row), title, " ".join(spelled[_TITLE_WORDS:]))


def queries(count: int, size: int, seed: int = 0) -> Iterator[Question]:
    """Questions that take their words from passages of a corpus of ``size`` passages.

    Args:
        count: how many questions.
        size: of the corpus.
        seed: of the corpus.
    """
    words = ZipfWords()
    random = np.random.default_rng([seed, 1])
    blocks = -(-size // BLOCK)
    chosen = random.choice(blocks, min(_QUERY_BLOCKS, blocks), replace=False).tolist()
    drawn = [_block(words, seed, number)[: size - number * BLOCK] for number in chosen]
    for number in range(count):
        at = number % len(drawn)
        row = int(random.integers(0, len(drawn[at])))
        numbers = drawn[at][row]
        content = np.unique(numbers[numbers >= 0])
        picked = random.choice(content, min(_QUERY_WORDS, len(content)), replace=False)
        text = "who is the " + " ".join(words.spell(each) for each in picked.tolist()) + "?"
        yield Question(text, str(chosen[at] * BLOCK + row))


def write_corpus(path: Path, count: int, seed: int = 0) -> None:
    """Write the corpus in Search-R1's form, one JSON object a line."""
    with atomic_write(path) as handle:
        for passage in passages(count, seed):
            row = {"id": passage.id, "contents": passage.contents}
            handle.write(json.dumps(row).encode() + b"\n")


def _block(words: ZipfWords, seed: int, number: int) -> list[npt.NDArray[np.int64]]:
    """The words of one block's passages, as numbers."""
    random = np.random.default_rng([seed, 0, number])
    lengths = np.maximum(random.normal(_MEAN, _DEVIATION, BLOCK).astype(np.int64), _LEAST)
    ends = np.cumsum(lengths)
    starts = np.repeat(ends - lengths, lengths)
    drawn = words.draw(random, int(ends[-1]))
    places = np.arange(len(drawn))
    earlier = starts + (random.random(len(drawn)) * (places - starts)).astype(np.int64)
    repeats = random.random(len(drawn)) < _REPEAT_SHARE
    drawn = np.where(repeats, drawn[earlier], drawn)
    return np.split(drawn, ends[:-1])


def _syllables(number: int) -> str:
    """A number in the system whose digits are syllables, without zero."""
    syllables = []
    number += 1
    while number:
        number, digit = divmod(number - 1, len(_ONSETS) * len(_RHYMES))
        onset, rhyme = divmod(digit, len(_RHYMES))
        syllables.append(_ONSETS[onset] + _RHYMES[rhyme])
    return "".join(reversed(syllables))
