"""A reward of your own: for questions whose ``reward_model`` is ``custom``.

./run.sh --set reward.function=rewards:short_search
"""

from searchrl.agents.episode import Episode
from searchrl.rewards.text import exact_match


def short_search(episode: Episode) -> float:
    """1 for a right answer, a twentieth less for every search after the first."""
    right = episode.answer is not None and exact_match(episode.answer, episode.question.answers)
    return float(right) - 0.05 * max(0, episode.searches - 1)
