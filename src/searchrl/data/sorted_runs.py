"""Sorting what memory does not hold: runs that are sorted on disk, merged a part at a time.

A part holds all keys between two cuts, which lie so that parts hold about as many things each. It
is a stretch of every run, so it is read in order and sorted in memory, one part after the other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence


def cuts(samples: Iterable[bytes], every: int) -> list[bytes]:
    """The keys at which parts begin, the first part left out.

    Args:
        samples: keys of all runs, one for equally many things each.
        every: so many samples a part.
    """
    return sorted(set(sorted(samples)[every::every]))


def parts(
    key: Callable[[int], bytes], ends: Sequence[int], at: Iterable[bytes]
) -> Iterator[list[slice]]:
    """The places of each run that belong to each part, in the order of the keys.

    Args:
        key: of a place; places count on from run to run, and keys ascend within a run.
        ends: the place after the last of each run.
        at: where parts begin, as ``cuts`` gives them.
    """
    places = range(ends[-1] if ends else 0)
    low = [0, *ends][: len(ends)]
    for cut in at:
        high = [
            bisect_left(places, cut, start, end, key=key)
            for start, end in zip(low, ends, strict=True)
        ]
        yield [slice(*pair) for pair in zip(low, high, strict=True)]
        low = high
    yield [slice(*pair) for pair in zip(low, ends, strict=True)]
