"""When an episode that failed costs its group the step, and when a step is not worth learning from.

The rules of the in-process trainer, over the names that verl gives to trajectories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from searchrl.errors import InfrastructureError


def session_of(key: str) -> tuple[str, str]:
    """A trajectory's group and its episode in it, from verl's ``{group}_{episode}_{row}``."""
    group, episode, _ = key.rsplit("_", 2)
    return group, episode


def groups_below(sessions: Iterable[tuple[str, str]], smallest: int) -> set[str]:
    """The groups with fewer episodes than their baseline needs."""
    sizes = Counter(group for group, _ in sessions)
    return {group for group, size in sizes.items() if size < smallest}


def check_failures(failed: int, asked: int, allowed: float) -> None:
    """See that a step did not lose too many episodes.

    Raises:
        InfrastructureError: more failed than ``allowed``, a share.
    """
    if failed > allowed * asked:
        raise InfrastructureError(
            f"{failed} of {asked} episodes met a failed service; the workers' logs say which"
        )
