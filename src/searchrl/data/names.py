"""Made-up names that no two worlds share.

A name is a number written in syllables. World ``seed`` owns its own block of numbers, and the map
from numbers to names is a bijection, so worlds with different seeds share no name, by construction
and at any size. Names come in families of four that share their first word and the first syllable
of their last ("Velmo Dorvik", "Velmo Dorlan", ...): the near-duplicates that a search has to
tell apart.

The bijection is a keyed permutation: no word of a name tells where in its world the entity stands,
so nothing about an entity can be guessed from its name.
"""

from __future__ import annotations

from functools import lru_cache

from searchrl.errors import InputError
from searchrl.seeding import derive_seed

FAMILY = 4
MAX_SEED = 9_999
MAX_INDEX = 10**8
_SHORT_BLOCK = 10**4
_SYLLABLES = 100
_WORDS = _SYLLABLES**2
# Families that two words and three words can name are the squares of these.
_SHORT_SIDE, _LONG_SIDE = 5_000, 500_000
_ROUNDS = 4

# All openings have three letters, so a word splits into its syllables in one way only.
_OPENINGS = tuple(
    first + vowel + last
    for first, vowel, last in (
        *((c, "a", "l") for c in "BDFGKLMNPRSTVZ"),
        *((c, "e", "r") for c in "BDFGKLMNPRSTVZ"),
        *((c, "i", "n") for c in "BDFGKLMNPRSTVZ"),
        *((c, "o", "r") for c in "BDFGKLMNPRSTVZ"),
        *((c, "u", "l") for c in "BDFGKLMNPRSTVZ"),
        *((c, "a", "n") for c in "BDFGKLMNPRSTVZ"),
        *((c, "e", "l") for c in "BDFGKLMNPRSTVZ"),
        *((c, "o", "m") for c in "KT"),
    )
)
_ENDINGS = (
    *(
        first + rest
        for rest in ("a", "o", "en", "is", "ek", "ur", "ax")
        for first in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
    ),
    "wyn",
    "wick",
)


@lru_cache(maxsize=1 << 16)
def name(seed: int, index: int) -> str:
    """The ``index``-th name of world ``seed``: two words, or three from index 10,000 on.

    Raises:
        InputError: the seed or the index is outside of what names can be made for.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed {seed}: a world's seed must be between 0 and {MAX_SEED}")
    if not 0 <= index < MAX_INDEX:
        raise InputError(f"index {index}: a world has at most {MAX_INDEX} names")
    if index < _SHORT_BLOCK:
        return " ".join(_words(seed * _SHORT_BLOCK + index, middle=False))
    return " ".join(_words(seed * MAX_INDEX + index, middle=True))


def _words(number: int, middle: bool) -> list[str]:
    family, member = divmod(number, FAMILY)
    rest = _scatter(family, _LONG_SIDE if middle else _SHORT_SIDE)
    rest, ending_group = divmod(rest, _SYLLABLES // FAMILY)
    rest, opening = divmod(rest, _SYLLABLES)
    last = opening * _SYLLABLES + ending_group * FAMILY + member
    words = [_word(last)]
    if middle:
        rest, number = divmod(rest, _WORDS)
        words.insert(0, _word(number))
    return [_word(rest), *words]


def _word(number: int) -> str:
    opening, ending = divmod(number, _SYLLABLES)
    return _OPENINGS[opening] + _ENDINGS[ending]


def _scatter(number: int, side: int) -> int:
    """A fixed permutation of ``range(side**2)`` that looks random.

    A Feistel network over the two digits of ``number`` in base ``side``, adding instead of XORing,
    so that it is a bijection for any side (Black and Rogaway, "Ciphers with Arbitrary Finite
    Domains", 2002).
    """
    left, right = divmod(number, side)
    for turn in range(_ROUNDS):
        left, right = right, (left + derive_seed("name", side, turn, right)) % side
    return left * side + right
