"""Train language models to search with reinforcement learning.

The package itself imports nothing heavy; each room is imported when it is used. The layering is
``cli -> training, evaluation, reporting -> agents, rewards -> retrieval, models -> data``.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
