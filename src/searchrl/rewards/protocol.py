"""What every reward promises: a finished episode in, its value out."""

from __future__ import annotations

from typing import Protocol

from searchrl.agents.episode import Episode, Reward


class RewardFunction(Protocol):
    """Scores finished episodes."""

    async def score(self, episode: Episode) -> Reward:
        """The reward, its value ``None`` when infrastructure failed."""
        ...
